"""Vertex AI's REST API on one machine: registry, endpoints, predictions; SQLite and a folder behind it."""
