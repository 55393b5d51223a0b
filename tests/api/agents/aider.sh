export OPENAI_API_BASE=http://127.0.0.1:8473/v1
export OPENAI_API_KEY=none
