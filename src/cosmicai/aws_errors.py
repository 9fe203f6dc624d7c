"""The one table of AWS's errors: for each a reason, what to do, and no secret."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

LIBRARIES = ("boto3", "botocore", "s3transfer")
MAX_TEXT = 400  # characters of AWS's own text in a sentence

_NO_CREDENTIALS = (
    "there are no AWS credentials; sign in with `aws configure` or `aws sso login`, or name a profile with --profile"
)
_SIGN_IN = (
    "you are no longer signed in to AWS; sign in again, with `aws sso login` or as you did before, then resume what "
    "was interrupted"
)
_REFUSED = (
    "AWS does not accept your credentials; check them with `aws sts get-caller-identity`, and this machine's clock"
)
_CLOCK = "this machine's clock is wrong by more than AWS accepts; correct it (`timedatectl`), then run again"
_REGION = "it is in another region than the one used; set AWS_DEFAULT_REGION or the region of your profile to it"
_BUSY = "AWS gets more requests than it accepts; run again later, with fewer ranks at a time"
_NO_BUCKET = "the bucket does not exist; check its name and your region"
# By AWS's error code or botocore's class. The errors' own texts may show a signature or the output of a helper program.
_REASONS = {
    "NoCredentialsError": _NO_CREDENTIALS,
    "PartialCredentialsError": "your AWS credentials are incomplete; expected the id of an access key and its secret",
    "CredentialRetrievalError": "the program or service that provides the credentials of your profile failed; "
    "see why with `aws sts get-caller-identity`",
    "NoRegionError": "no region is given; use --region or AWS_DEFAULT_REGION, such as us-east-1",
    **dict.fromkeys(("SSOError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "TokenRetrievalError"), _SIGN_IN),
    **dict.fromkeys(("LoginError", "ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"),
                    _SIGN_IN),
    **dict.fromkeys(("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId"), _REFUSED),
    **dict.fromkeys(("AuthFailure", "SignatureDoesNotMatch", "InvalidSignatureException"), _REFUSED),
    **dict.fromkeys(("IncompleteSignature", "IncompleteSignatureException", "InvalidToken"), _REFUSED),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestInTheFuture"), _CLOCK),
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "301"), _REGION),
    **dict.fromkeys(("IllegalLocationConstraintException",), _REGION),
    **dict.fromkeys(("SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException", "503"), _BUSY),
    "InvalidObjectState": "it is archived (Glacier); restore it with `aws s3api restore-object`, then run again",
    "PreconditionFailed": "it was replaced while it was being read; run again",
    "RecursionError": _REGION,  # botocore follows every redirection
    "NoSuchBucket": _NO_BUCKET,
    "400": "AWS refused the request without a reason (400); sign in again, and check the region and the clock",
    "403": "permission denied; ask the administrators of the account for it",
}  # fmt: skip


def is_aws_error(error: Exception) -> bool:
    """Return whether an exception is one of the libraries for AWS, or what they end with if redirected for ever."""
    return isinstance(error, RecursionError) or type(error).__module__.partition(".")[0] in LIBRARIES


def describe_aws_error(error: Exception, *, missing: str, remedy: str = "") -> str:
    """Return the reason of an error of AWS or of the connection to it, and what to do, as the end of a sentence.

    `missing` is that sentence for what does not exist, and `remedy` follows AWS's own words where nothing better is
    known. Texts that can hold a secret are left out.
    """
    if type(error).__name__ == "S3UploadFailedError" and isinstance(error.__context__, Exception):
        error = error.__context__  # whose reason it has in its text alone
    response = getattr(error, "response", None) or getattr(error, "last_response", None) or {}  # the latter of a waiter
    reported = response.get("Error", {})
    code = str(reported.get("Code") or "")
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if code in ("404", "NoSuchKey"):
        return missing
    if known := next((_REASONS[name] for name in (code, *kinds) if name in _REASONS), None):
        return known
    if "ProxyConnectionError" in kinds:
        return f"the proxy {_proxy(error)} does not answer; correct HTTPS_PROXY and HTTP_PROXY, or name AWS in NO_PROXY"
    if "SSLError" in kinds:
        return _describe_certificates()
    if not {"ConnectionError", "HTTPClientError"}.isdisjoint(kinds) and "endpoint_url" in getattr(error, "kwargs", {}):
        url = str(error.kwargs["endpoint_url"]).partition("?")[0]  # type: ignore[attr-defined]
        return f"{url} does not answer; check the network, the region and AWS_ENDPOINT_URL"
    text = " ".join(str(reported.get("Message") or error).split())[:MAX_TEXT]
    if "ProfileNotFound" in kinds:
        return f"{text}; `aws configure list-profiles` lists your profiles"
    if code.startswith(("AccessDenied", "Unauthorized", "AllAccessDisabled")):
        return f"{text} ({code}); ask the administrators of the account for this permission"
    return (f"{text} ({code})" if code else text) + remedy


def _proxy(error: Exception) -> str:
    """Return the address of the proxy without user and password."""
    parts = urlsplit(str(getattr(error, "kwargs", {}).get("proxy_url", "")))
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _describe_certificates() -> str:
    variable = next((name for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE") if os.environ.get(name)), None)
    if variable is None:
        return "its certificate cannot be verified; name the file of your site's certificates in AWS_CA_BUNDLE"
    return (
        f"its certificate cannot be verified by {variable}={os.environ[variable]}; correct or unset {variable}, or "
        "check that the file exists"
    )
