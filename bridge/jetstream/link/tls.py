"""TLS to the server: the context of a connection, and what it means when a handshake fails."""

from __future__ import annotations

import ssl

from squadron.bridge.jetstream.link.at_home import TlsFiles
from squadron.runtime.errors import TlsError

#: OpenSSL's codes of what is wrong with a certificate (x509_vfy.h).
_NOT_YET, _EXPIRED, _WRONG_NAME = (9,), (10,), (62, 64)
#: Alerts of a server that looked for a client's certificate, in OpenSSL's words. Those of TLS 1.2 have no name for
#: one that is missing: Go's server says that it is bad.
_REFUSALS = (
    "CERTIFICATE_REQUIRED",
    "BAD_CERTIFICATE",
    "UNKNOWN_CA",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_UNKNOWN",
    "CERTIFICATE_REVOKED",
    "UNSUPPORTED_CERTIFICATE",
)


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """What a connection is made with; without a CA the system's are believed.

    Raises:
        TlsError: a file can't be read, or the key is not that of the certificate.
    """
    field = "nats_tls_ca"
    try:
        context = ssl.create_default_context(cafile=files.ca and str(files.ca))
        if files.cert:
            field = "nats_tls_cert"
            context.load_cert_chain(str(files.cert), files.key and str(files.key))
    except (OSError, ssl.SSLError) as error:
        path = files.ca if field == "nats_tls_ca" else f"{files.cert}, {files.key}"
        raise TlsError(
            f"{field}: {path} can't be used: {error.strerror or error}",
            field=field,
            reason="files",
            hint="NATS_CA, NATS_CERT and NATS_KEY are files in PEM, there on each node, and belong together",
        ) from None
    return context


def no_tls(host: str) -> TlsError:
    """The server has no TLS, and was asked for it: nothing is sent to it, a password least of all."""
    return TlsError(
        f"NATS at {host} has no TLS, and it is wanted",
        field="nats_url",
        reason="plain",
        hint="give the server certificates (squadron auth tls); or, if all may read the wire, unset NATS_CA, "
        "NATS_CERT and NATS_KEY and write nats:// in NATS_URL",
    )


def explain_tls(error: BaseException, host: str, files: TlsFiles, *, wants_ours: bool) -> TlsError | None:
    """What a failed connection has to do with TLS, if it has.

    Args:
        host: the server, without credentials.
        files: what was used.
        wants_ours: whether the server says that it looks for certificates of its clients.
    """
    if isinstance(error, TlsError):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unbelieved(error, host, files)
    # The alert may be lost: a server that closes while the client sends resets the connection.
    ended = wants_ours and isinstance(error, ssl.SSLError | ConnectionResetError | BrokenPipeError | EOFError)
    alerted = isinstance(error, ssl.SSLError) and any(each in str(error).upper() for each in _REFUSALS)
    if ended and not files.cert:
        return TlsError(
            f"NATS at {host} wants a certificate of its clients",
            field="nats_tls_cert",
            reason="no_certificate",
            hint="set NATS_CERT and NATS_KEY; `squadron auth tls --client NAME` makes them with your CA",
        )
    if alerted or (ended and not isinstance(error, ssl.SSLError)):
        return TlsError(
            f"NATS at {host} does not take {files.cert}",
            field="nats_tls_cert",
            reason="refused",
            hint="it has expired, or another CA signed it: the server's log says which; NATS_CERT, NATS_KEY",
        )
    if isinstance(error, ssl.SSLError):
        return TlsError(
            f"TLS with NATS at {host} failed: {error.reason or error}",
            field="nats_url",
            hint="is there a nats-server at that port, with TLS 1.2 or newer? See its log",
        )
    return None


def _unbelieved(error: ssl.SSLCertVerificationError, host: str, files: TlsFiles) -> TlsError:
    if error.verify_code in _EXPIRED:
        return TlsError(
            f"the certificate of NATS at {host} has expired",
            field="nats_url",
            reason="expired",
            hint="make it anew (squadron auth tls HOST), and send the server SIGHUP; `squadron up` renews that of "
            "the embedded server",
        )
    if error.verify_code in _NOT_YET:
        return TlsError(
            f"the certificate of NATS at {host} is not valid yet",
            field="nats_url",
            reason="not_yet_valid",
            hint="one of the two clocks is wrong: timedatectl set-ntp true",
        )
    if error.verify_code in _WRONG_NAME:
        return TlsError(
            f"the certificate of NATS at {host} is for another name",
            field="nats_url",
            reason="wrong_name",
            hint="write in NATS_URL what stands in it, or make one for this name: squadron auth tls HOST",
        )
    by = f"{files.ca} did not sign it" if files.ca else "no CA of this system signed it"
    return TlsError(
        f"the certificate of NATS at {host} is not believed: {by} ({error.verify_message})",
        field="nats_tls_ca",
        reason="unknown_ca",
        hint="set NATS_CA to the CA that signed it",
    )
