#!/usr/bin/env bash
# Asks a topic with nothing but bash: the NATS protocol is lines over TCP.
#
#     SQUADRON_HOME=… bash ask.sh TOPIC '{"text": "hi"}'
#
# prints chunks and then the result, one message a line; fails unless the task ended in a result.
set -eu
export LC_ALL=C # so that lengths are in bytes
topic=$1 input=$2 environment=${SQUADRON_ENV:-dev}
endpoint=$(tr -d ' \n' <"$SQUADRON_HOME/nats/endpoint.json")
address=$(sed -n 's/.*"url":"[a-z]*:\/\/\([^"]*\)".*/\1/p' <<<"$endpoint")
token=$(sed -n 's/.*"token":"\([^"]*\)".*/\1/p' <<<"$endpoint")

id=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
reply_to=agents.$environment.lite.shell.$id
task='{"id":"'$id'","timestamp":'$(date +%s)',"version":"1.0","type":"task","source":{"id":"shell"},"replyTo":"'$reply_to'"'
task+=',"context":{"conversationId":"'$id'"},"payload":{"content":'$input'},"routing":{"timeout":60000}}'
# Under its message id a task that is published again within two minutes counts once.
headers=$'NATS/1.0\r\nNats-Msg-Id: '$id$'\r\n\r\n'

exec 3<>"/dev/tcp/${address%:*}/${address##*:}"
say() { printf '%s\r\n' "$@" >&3; }
say 'CONNECT {"verbose":false,"lang":"bash","version":"1","headers":true,"auth_token":"'"$token"'"}'
say "SUB $reply_to 1" "SUB _INBOX.$id 2"
say "HPUB agents.$environment.task.$topic _INBOX.$id ${#headers} $((${#headers} + ${#task}))" "$headers$task"

while IFS= read -r -t 60 line <&3; do
    read -ra words <<<"${line%$'\r'}"
    case "${words[0]-}" in
    PING) say PONG ;;
    -ERR) echo "$line" >&2; exit 3 ;;
    MSG | HMSG)
        IFS= read -r -t 60 -N "${words[-1]}" body <&3
        [ "${words[0]}" = MSG ] || body=${body:${words[-2]}}
        if [ "${words[2]}" = 2 ]; then # the stream has it, or says why not
            [[ $body != *'"error"'* ]] || { echo "$body" >&2; exit 3; }
            continue
        fi
        printf '%s\n' "$body"
        [[ $body == *'"version":"1.0","type":"result"'* ]] || continue
        [[ $body == *'"content":{"success":true'* ]] && exit 0
        exit 1 ;;
    esac
done
echo "no answer in time" >&2
exit 3
