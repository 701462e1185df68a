"""The pair as one artifact: export, manifest, digests, golden windows, and how it runs."""
