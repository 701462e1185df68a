"""The devices' counterpart."""
