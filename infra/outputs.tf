output "registry" {
  description = "Where `twophase containers push` pushes to."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "bucket" {
  description = "For `twophase submit --bucket`."
  value       = "gs://${google_storage_bucket.work.name}"
}

output "service_account" {
  description = "For `twophase submit --service-account`."
  value       = google_service_account.runner.email
}
