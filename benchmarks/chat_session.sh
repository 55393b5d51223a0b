#!/usr/bin/env bash
# A real session of the chat in a pseudo-terminal: type, stream, stop, continue, branch, search, switch model, quit,
# reopen. Keys go through tmux; after each step the screen is awaited, and the last screens are kept in a folder.
#   benchmarks/chat_session.sh URL [FOLDER] [SECOND_MODEL]     URL of a server that answers, such as rvllm serve's
set -euo pipefail
cd "$(dirname "$0")/.."
command -v tmux > /dev/null || { echo "SKIPPED: tmux is not installed"; exit 0; }
url=$1
folder=${2:-$(mktemp -d)}
second=${3:-}
socket="rvllm-chat-$$"
mkdir -p "$folder"
tm() { tmux -L "$socket" -f /dev/null "$@"; }
trap 'tm kill-server 2> /dev/null || true' EXIT

start() {
    tm new-session -d -s chat -x 100 -y 30 \
        "env TERM=screen-256color RVLLM_HISTORY='$folder/history.db' ${PYTHON:-.venv/bin/python} -m rvllm_local.cli chat --endpoint '$url' $*; echo \"ended with \$?\"; sleep 60"
}
screen() { tm capture-pane -p -t chat; }
keys() { tm send-keys -t chat "$@"; }
say() { tm send-keys -t chat -l "$1"; sleep 0.3; keys Enter; }
fail() { echo "FAILED: $1"; screen; exit 1; }
await() {  # await WORDS [SECONDS]
    for _ in $(seq $((${2:-60} * 10))); do
        if screen | grep -qF -- "$1"; then return; fi
        sleep 0.1
    done
    fail "'$1' did not come"
}
gone() {
    for _ in $(seq 300); do
        if ! screen | grep -qF -- "$1"; then return; fi
        sleep 0.1
    done
    fail "'$1' did not go"
}
keep() { screen > "$folder/$1.txt"; echo "ok  $1"; }

start
await "Ask anything"
gone "looking for a server"
say "/set max_tokens 400"
await "in this chat"
say "/set temperature 0"
say "Tell me a long story about a whale."
await "tok/s" 120; sleep 1
keys Escape; await "stopped"; keep 1-stopped
say "/set max_tokens 24"
say "Go on."
await "Go on."; await "ctx" 120; keep 2-continued  # the server's counts come with the end
keys M-Up; sleep 0.3; keys r; gone "ctx"; await "ctx" 120; await "2/2"; keep 3-branched
keys M-Up; sleep 0.3; keys '['; await "1/2"; keep 4-sibling
keys Escape; sleep 0.5
keys C-n; await "Ctrl+S opens"
keys C-s; await "type to narrow"; tm send-keys -t chat -l "whale"; await "whale"; sleep 1; keep 5-search
keys Enter; await "Go on."; keep 6-found
if [ -n "$second" ]; then
    say "/model $second"; await "$second"; keep 7-model
else
    keys C-l; await "type to narrow"; keep 7-model; keys Escape; gone "type to narrow"
fi
keys C-b; await "Blocks" 5; sleep 2; keep 8-engine; keys C-b
keys C-q; await "ended with 0"; keep 9-quit
tm kill-session -t chat
start --continue
await "Go on."; keep 10-reopened
keys C-c; await "again to quit"; keys C-c; await "ended with 0"; keep 11-quit
tm kill-session -t chat
"${PYTHON:-.venv/bin/python}" benchmarks/chat_session_check.py "$folder"
