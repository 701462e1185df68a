# What a Google Cloud project needs for the pipeline and its trigger: APIs, a bucket, a registry of images, service
# accounts with the least rights, and (where an image of the trigger is named) the function, its queue and its schedule.
#
#   terraform init && terraform apply -var project=PROJECT -var bucket=BUCKET [-var data=gs://BUCKET/clips ...]
#
# docs/vertex.md walks through it. Nothing here deploys a model: the pipeline does.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.0"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

data "google_project" "this" {
  project_id = var.project
}

locals {
  triggered = var.data != "" && var.trainer_image != ""
  apis = concat(
    ["aiplatform", "artifactregistry", "compute", "iam", "storage"],
    local.triggered ? ["cloudscheduler", "cloudtasks", "eventarc", "pubsub", "run"] : [],
  )
}

resource "google_project_service" "api" {
  for_each           = toset(local.apis)
  service            = "${each.key}.googleapis.com"
  disable_on_destroy = false
}

resource "google_storage_bucket" "work" {
  name                        = var.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  # What steps hand to one another is seldom read again, but some is: the release of a version lies where its run left it,
  # and the next run compares with it. So nothing is deleted by age.
  lifecycle_rule {
    action {
      type          = "SetStorageClass"
      storage_class = "NEARLINE"
    }
    condition {
      age            = 30
      matches_prefix = ["two-phase/runs/"]
    }
  }
  depends_on = [google_project_service.api]
}

resource "google_artifact_registry_repository" "images" {
  repository_id = "twophase"
  location      = var.region
  format        = "DOCKER"
  depends_on    = [google_project_service.api]
}
