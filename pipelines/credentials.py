"""Google's default credentials, for the two addresses that are asked without a client of Google's."""


def authorization() -> dict[str, str]:
    """The header that they make. Raises `google.auth.exceptions.GoogleAuthError` where there are none."""
    import google.auth
    import google.auth.transport.requests

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    credentials.refresh(google.auth.transport.requests.Request())
    return {"authorization": f"Bearer {credentials.token}"}
