#!/usr/bin/env bash
# Sets an agent's replicas over plain HTTP, on the port of Ray's dashboard:
#
#     bash scale.sh AGENT 3          exactly three
#     bash scale.sh AGENT 2 8        within bounds
#
# DASHBOARD is its address, TOKEN the cluster's token if it asks for one. It takes curl and jq.
set -euo pipefail
name=${SQUADRON_ENV:-dev}.$1 least=$2 most=${3:-$2}
applications=${DASHBOARD:-http://127.0.0.1:8265}/api/serve/applications/

call() { # the token is in no command line, where others could see it
    curl --silent --show-error --fail-with-body --config - "$@" <<<"${TOKEN:+header = \"Authorization: Bearer $TOKEN\"}"
}

# All that is declared, as it is, but for these bounds: what a declaration leaves out is taken away.
declared=$(call "$applications" | jq --arg name "$name" --argjson least "$least" --argjson most "$most" '
    {proxy_location: "Disabled", applications: [.applications[].deployed_app_config | values]}
    | if any(.applications[]; .name == $name) then . else error("no application \($name) is declared") end
    | (.applications[] | select(.name == $name).deployments[0].autoscaling_config)
      |= . + {min_replicas: $least, max_replicas: $most}')
call --request PUT --header 'Content-Type: application/json' --data-binary "$declared" "$applications"
