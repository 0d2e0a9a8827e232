#!/bin/sh
# Signs a message, or verifies one, with OpenSSL 3 and coreutils:
#
#     signed.sh sign NAME.creds SUBJECT < payload          prints the header Agent-Sender
#     signed.sh verify HEADER SUBJECT < payload            prints the key of who signed it, or fails
#
# Whose key that is says the JWT on agents.ENV.registry.key.KEY; whether to believe that, the trust document.
set -eu
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
hex() { od -An -v -tx1 | tr -d ' \n'; }
bytes() { sed 's/../\\x&/g' | xargs -0 printf '%b'; }                 # from hex
unbase64url() { tr -- '-_' '+/' | sed -e 's/$/==/' -e 's/\(\(....\)*\)=*$/\1/' | base64 -d 2>/dev/null; }
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
unbase32() { awk '{ while (length($0) % 8) $0 = $0 "="; print }' | base32 -d; }
digest() { sha256sum "$work/payload" | cut -c1-64; }
signed() { printf 'AGENT-SENDER-V1\n%s\n%s\n%s\n%s\n%s\n%s\n' "$1" "$2" "$3" "$4" "$5" "$(digest)" > "$work/signed"; }
cat_payload() { cat > "$work/payload"; }

case "$1" in
sign)
    cat_payload
    jwt=$(sed -n '2p' "$2"); seed=$(grep '^SU' "$2"); subject=$3
    claims=$(printf '%s' "$jwt" | cut -d. -f2 | unbase64url)
    user=$(printf '%s' "$claims" | field sub); account=$(printf '%s' "$claims" | field issuer_account)
    name=$(printf '%s' "$claims" | field name)
    raw=$(printf '%s' "$seed" | unbase32 | hex | cut -c5-68)
    printf '302e020100300506032b657004220420%s' "$raw" | bytes > "$work/key.der"
    ts=$(date -u +%Y-%m-%dT%H:%M:%SZ); nonce=$(openssl rand -hex 16)
    signed "$account" "$user" "$subject" "$ts" "$nonce"
    sig=$(openssl pkeyutl -sign -rawin -in "$work/signed" -inkey "$work/key.der" -keyform DER | base64 -w0 | tr '+/' '-_' | tr -d =)
    printf '{"v":1,"account":"%s","user":"%s","name":"%s","sub":"%s","ts":"%s","nonce":"%s","sig":"%s"}\n' \
        "$account" "$user" "$name" "$subject" "$ts" "$nonce" "$sig"
    ;;
verify)
    cat_payload
    header=$2; subject=$3
    user=$(printf '%s' "$header" | field user)
    [ "$(printf '%s' "$header" | field sub)" = "$subject" ] || { echo "signed for another subject" >&2; exit 1; }
    raw=$(printf '%s' "$user" | unbase32 | hex | cut -c3-66)
    printf '302a300506032b6570032100%s' "$raw" | bytes > "$work/key.der"
    signed "$(printf '%s' "$header" | field account)" "$user" "$subject" \
        "$(printf '%s' "$header" | field ts)" "$(printf '%s' "$header" | field nonce)"
    printf '%s' "$header" | field sig | unbase64url > "$work/sig"
    openssl pkeyutl -verify -rawin -in "$work/signed" -sigfile "$work/sig" -pubin -inkey "$work/key.der" -keyform DER >&2
    echo "$user"
    ;;
esac
