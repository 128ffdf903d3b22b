#!/usr/bin/env bash
# Export a model, serve it with the image of TensorFlow Serving, and compare what clients get with `mrcnn-tf predict`.
#
#     smoke.sh MODEL.keras IMAGE...
#
# Needs docker and `pip install 'mrcnn-tf[serving]'`. Environment:
#     TF_SERVING_IMAGE    image of the server (tensorflow/serving:latest)
#     TF_SERVER_COMMAND   a tensorflow_model_server to run instead of docker
#     GRPC_PORT REST_PORT ports on this machine (8500, 8501)
#     SCORE_THRESHOLD     objects with a lower score are not compared (0.3)
#     SECONDS_TO_LOAD     how long the server may take to load and warm up (600)
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 MODEL.keras IMAGE..." >&2; exit 2; }
model=$1
shift
grpc_port=${GRPC_PORT:-8500}
rest_port=${REST_PORT:-8501}
threshold=${SCORE_THRESHOLD:-0.3}
name=smoke
work=$(mktemp -d)
served=$work/$name
server=

stop() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap stop EXIT

say() { echo "== $*"; }

fail() {
    echo "FAILED: $*" >&2
    [ ! -s "$work/server.log" ] || tail -n 40 "$work/server.log" >&2
    exit 1
}

fetch() {
    python -c 'import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())' \
        "http://127.0.0.1:$rest_port$1"
}

wait_for_version() {
    for _ in $(seq "${SECONDS_TO_LOAD:-600}"); do
        kill -0 "$server" 2>/dev/null || fail "the server has ended"
        if fetch "/v1/models/$name/versions/$1" 2>/dev/null | grep -q '"state": "AVAILABLE"'; then
            return
        fi
        sleep 1
    done
    fail "version $1 is not available after ${SECONDS_TO_LOAD:-600} s"
}

compare() { python -m mrcnn_tf.export.compare_predictions "$work/expected/detections.json" "$1/detections.json"; }

serve() {
    flags=(
        --monitoring_config_file="$1/monitoring.config"
        --enable_batching=true --batching_parameters_file="$1/batching.config"
        --file_system_poll_wait_seconds=1
    )
    if [ -n "${TF_SERVER_COMMAND:-}" ]; then
        # Not quoted: the command may have arguments.
        $TF_SERVER_COMMAND --port="$grpc_port" --rest_api_port="$rest_port" --model_name="$name" \
            --model_base_path="$1" "${flags[@]}" >"$work/server.log" 2>&1 &
    else
        docker run --rm --init -p "$grpc_port:8500" -p "$rest_port:8501" -v "$served:$1:ro" \
            "${TF_SERVING_IMAGE:-tensorflow/serving:latest}" --model_config_file="$1/models.config" "${flags[@]}" \
            >"$work/server.log" 2>&1 &
    fi
    server=$!
}

say "export and predict"
mrcnn-tf export saved-model "$model" --output "$served" --name "$name" --max-batch-size 2
mrcnn-tf predict "$model" "$@" --output "$work/expected" --score-threshold "$threshold"
grep -q category_id "$work/expected/detections.json" || fail "the model finds nothing in these pictures: nothing to compare"

say "serve, with warm-up and batching"
if [ -n "${TF_SERVER_COMMAND:-}" ]; then serve "$served"; else serve "/models/$name"; fi
wait_for_version 1

client() { mrcnn-tf serve-client --model-name "$name" --score-threshold "$threshold" "$@"; }

for url in "grpc://127.0.0.1:$grpc_port" "http://127.0.0.1:$rest_port"; do
    say "the same from $url"
    client --url "$url" "$@" --output "$work/found"
    compare "$work/found"
done

say "many clients at once, so that batches form"
clients=()
for number in 1 2 3 4; do
    client --url "grpc://127.0.0.1:$grpc_port" "$@" --output "$work/found-$number" &
    clients+=($!)
done
for client in "${clients[@]}"; do wait "$client" || fail "a client failed"; done
for number in 1 2 3 4; do compare "$work/found-$number"; done

say "a broken picture is named and left out"
echo "no picture" >"$work/broken.jpg"
python - "http://127.0.0.1:$rest_port/v1/models/$name:predict" "$work/broken.jpg" <<'PYTHON' || fail "the broken picture"
import base64, json, sys, urllib.request

data = base64.b64encode(open(sys.argv[2], "rb").read()).decode()
request = json.dumps({"instances": [{"b64": data}]}).encode()
answer = json.load(urllib.request.urlopen(sys.argv[1], request, timeout=60))["predictions"][0]
sys.exit(answer["image_errors"] != "neither a JPEG nor a PNG picture" or answer["num_detections"] != 0)
PYTHON

say "a model that is not there"
if mrcnn-tf serve-client --url "grpc://127.0.0.1:$grpc_port" --model-name other "$1" --output "$work/none" 2>"$work/error"; then
    fail "a model that is not there has answered"
fi
grep -q "no model 'other'" "$work/error" || fail "$(cat "$work/error")"

say "metrics"
fetch /monitoring/prometheus/metrics | grep -q tensorflow || fail "no metrics"

say "a new version takes over while the old one is there"
mrcnn-tf export saved-model "$model" --output "$served" --name "$name" --max-batch-size 1
wait_for_version 2
client --url "grpc://127.0.0.1:$grpc_port" --version 2 "$@" --output "$work/found"
compare "$work/found"

say "all is well"
