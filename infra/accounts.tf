# Two accounts. The runner is whom the pipeline's steps run as; the trigger may start runs as the runner, and no more.

resource "google_service_account" "runner" {
  account_id   = "twophase-runner"
  display_name = "Steps of the two-phase pipeline"
}

resource "google_project_iam_member" "runner" {
  for_each = toset([
    "roles/aiplatform.user",         # jobs, models, endpoints
    "roles/artifactregistry.reader", # the images
    "roles/logging.logWriter",
  ])
  project = var.project
  role    = each.key
  member  = google_service_account.runner.member
}

resource "google_storage_bucket_iam_member" "runner" {
  bucket = google_storage_bucket.work.name
  role   = "roles/storage.objectAdmin"
  member = google_service_account.runner.member
}

# A step starts training jobs as the account that it runs as itself.
resource "google_service_account_iam_member" "runner_as_itself" {
  service_account_id = google_service_account.runner.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.runner.member
}

resource "google_service_account" "trigger" {
  count        = local.triggered ? 1 : 0
  account_id   = "twophase-trigger"
  display_name = "Starts a run when there is new data"
}

resource "google_project_iam_member" "trigger" {
  for_each = local.triggered ? toset([
    "roles/aiplatform.user",
    "roles/cloudtasks.enqueuer",
    "roles/eventarc.eventReceiver",
    "roles/logging.logWriter",
  ]) : toset([])
  project = var.project
  role    = each.key
  member  = google_service_account.trigger[0].member
}

resource "google_service_account_iam_member" "trigger_as_runner" {
  count              = local.triggered ? 1 : 0
  service_account_id = google_service_account.runner.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.trigger[0].member
}

resource "google_service_account_iam_member" "trigger_as_itself" {
  count              = local.triggered ? 1 : 0
  service_account_id = google_service_account.trigger[0].name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.trigger[0].member
}

# The trigger lists the clips, the runner reads them.
resource "google_storage_bucket_iam_member" "clips" {
  for_each = local.triggered ? {
    trigger = google_service_account.trigger[0].member
    runner  = google_service_account.runner.member
  } : {}
  bucket = local.clips_bucket
  role   = "roles/storage.objectViewer"
  member = each.value
}

# Cloud Storage tells Eventarc of new objects through Pub/Sub.
data "google_storage_project_service_account" "storage" {
  project = var.project
}

resource "google_project_iam_member" "storage_tells" {
  count   = local.triggered ? 1 : 0
  project = var.project
  role    = "roles/pubsub.publisher"
  member  = "serviceAccount:${data.google_storage_project_service_account.storage.email_address}"
}
