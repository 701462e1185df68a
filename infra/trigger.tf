# New clips start runs: the trainer image runs the trigger's two functions as services (functions-framework is in it), an
# Eventarc trigger calls the first, a queue and a schedule call the second.

locals {
  clips_bucket = local.triggered ? split("/", trimprefix(var.data, "gs://"))[0] : ""
  settings = {
    TWOPHASE_DATA            = var.data
    TWOPHASE_BUCKET          = "gs://${var.bucket}"
    TWOPHASE_IMAGE           = var.trainer_image
    TWOPHASE_PROJECT         = var.project
    TWOPHASE_REGION          = var.region
    TWOPHASE_SERVICE_ACCOUNT = google_service_account.runner.email
    TWOPHASE_NEW_CLIPS       = tostring(var.new_clips)
    TWOPHASE_RUNS_A_DAY      = tostring(var.runs_a_day)
    TWOPHASE_QUIET_S         = tostring(var.quiet_seconds)
  }
}

resource "google_cloud_run_v2_service" "time" {
  count               = local.triggered ? 1 : 0
  name                = "twophase-on-time"
  location            = var.region
  ingress             = "INGRESS_TRAFFIC_ALL"
  deletion_protection = false

  template {
    service_account = google_service_account.trigger[0].email
    containers {
      image   = var.trainer_image
      command = ["functions-framework", "--source", "/app/pipelines/trigger.py", "--target", "on_time"]
      resources {
        limits = { cpu = "1", memory = "2Gi" }
      }
      dynamic "env" {
        for_each = local.settings
        content {
          name  = env.key
          value = env.value
        }
      }
    }
  }
  depends_on = [google_project_service.api]
}

resource "google_cloud_run_v2_service" "news" {
  count               = local.triggered ? 1 : 0
  name                = "twophase-on-new-data"
  location            = var.region
  ingress             = "INGRESS_TRAFFIC_INTERNAL_ONLY"
  deletion_protection = false

  template {
    service_account = google_service_account.trigger[0].email
    containers {
      image   = var.trainer_image
      command = ["functions-framework", "--source", "/app/pipelines/trigger.py", "--target", "on_new_data"]
      resources {
        limits = { cpu = "1", memory = "2Gi" }
      }
      dynamic "env" {
        for_each = merge(local.settings, {
          TWOPHASE_QUEUE        = google_cloud_tasks_queue.news[0].id
          TWOPHASE_TASK_URL     = google_cloud_run_v2_service.time[0].uri
          TWOPHASE_TASK_ACCOUNT = google_service_account.trigger[0].email
        })
        content {
          name  = env.key
          value = env.value
        }
      }
    }
  }
  depends_on = [google_project_service.api]
}

resource "google_cloud_run_v2_service_iam_member" "call" {
  for_each = local.triggered ? {
    news = google_cloud_run_v2_service.news[0].name
    time = google_cloud_run_v2_service.time[0].name
  } : {}
  name     = each.value
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.trigger[0].member
}

resource "google_cloud_tasks_queue" "news" {
  count    = local.triggered ? 1 : 0
  name     = "twophase-news"
  location = var.region
  retry_config {
    max_attempts = 10
    min_backoff  = "10s"
  }
  depends_on = [google_project_service.api]
}

resource "google_eventarc_trigger" "news" {
  count           = local.triggered ? 1 : 0
  name            = "twophase-new-data"
  location        = var.region
  service_account = google_service_account.trigger[0].email

  matching_criteria {
    attribute = "type"
    value     = "google.cloud.storage.object.v1.finalized"
  }
  matching_criteria {
    attribute = "bucket"
    value     = local.clips_bucket
  }
  destination {
    cloud_run_service {
      service = google_cloud_run_v2_service.news[0].name
      region  = var.region
    }
  }
  depends_on = [google_project_iam_member.trigger, google_project_iam_member.storage_tells]
}

# What an event missed, the sweep finds.
resource "google_cloud_scheduler_job" "sweep" {
  count     = local.triggered ? 1 : 0
  name      = "twophase-sweep"
  region    = var.region
  schedule  = "17 */6 * * *"
  time_zone = "Etc/UTC"

  http_target {
    http_method = "POST"
    uri         = google_cloud_run_v2_service.time[0].uri
    oidc_token {
      service_account_email = google_service_account.trigger[0].email
    }
  }
  depends_on = [google_project_service.api]
}
