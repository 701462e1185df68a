variable "project" {
  type        = string
  description = "The Google Cloud project."
}

variable "region" {
  type        = string
  default     = "us-central1"
  description = "Where everything lies and runs."
}

variable "bucket" {
  type        = string
  description = "Name of the bucket for outputs and images, without gs://."
}

variable "trainer_image" {
  type        = string
  default     = ""
  description = "The trainer image as `twophase containers push` named it; with `data`, new clips start runs."
}

variable "data" {
  type        = string
  default     = ""
  description = "gs://BUCKET/FOLDER that clips are put below; a _SUCCESS or manifest.json, written last, starts a run."

  validation {
    condition     = var.data == "" || can(regex("^gs://[^/]+/.+[^/]$", var.data))
    error_message = "Give gs://BUCKET/FOLDER without a slash at the end."
  }
}

variable "runs_a_day" {
  type        = number
  default     = 4
  description = "Most runs that new clips may start in a day."
}

variable "new_clips" {
  type        = number
  default     = 0
  description = "So many new files, or more, are worth a run; 0 for any change."
}

variable "quiet_seconds" {
  type        = number
  default     = 300
  description = "News within so many seconds starts one run."
}
