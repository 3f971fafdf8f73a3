#!/bin/sh
# Puts what the plain consumer of `make bench-fold` needs into .tools/bench (or $TOLLGATE_TOOLS/bench): confluent-kafka,
# fastavro and clickhouse-connect from PyPI, each pinned. Safe to run again at any time, and to interrupt.
set -eu
. "$(dirname "$0")/install.sh"
. "$(dirname "$0")/python_tool.sh"

kafka=2.16.1
avro=1.13.1
clickhouse=1.12.0

target=$tools/bench
version="$kafka $avro $clickhouse"
installed consumer "$version" && exit 0
need python3 "runs the plain consumer" python3-venv
check_needs

lock bench
installed consumer "$version" && exit 0
mkdir -p "$target"
scratch bench
python_tool consumer "$version" "confluent-kafka==$kafka" "fastavro==$avro" "clickhouse-connect==$clickhouse"
say "the plain consumer in $target/consumer"
