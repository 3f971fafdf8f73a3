"""What a user would write: read the topic in a consumer group, decode Avro, insert batches, commit. Prints events per second.

It deduplicates nothing, proves nothing and publishes no balances: it is what the fold is measured beside.
"""

import io
import sys
import time

import clickhouse_connect
import fastavro
from confluent_kafka import Consumer

brokers, clickhouse_port, schema_file, topic, seconds = sys.argv[1:]
BATCH = 10_000

schema = fastavro.schema.load_schema(schema_file)
store = clickhouse_connect.get_client(host="127.0.0.1", port=int(clickhouse_port), autogenerate_session_id=False, compress=False)
store.command(
    """CREATE TABLE plain (kafka_partition Int32, kafka_offset Int64, event_id UUID, source UUID, seq UInt64,
    occurred_at DateTime64(6, 'UTC'), tenant_id LowCardinality(String), request_id UUID, attempt Int32,
    project_id LowCardinality(String), api_key_id UUID, model LowCardinality(String), version LowCardinality(String),
    replica LowCardinality(String), endpoint LowCardinality(String), input UInt64, cached_input UInt64, output UInt64,
    reasoning UInt64, requests UInt64, final Bool, estimated Bool, end_reason LowCardinality(String))
    ENGINE = MergeTree ORDER BY (tenant_id, occurred_at)"""
)
COLUMNS = (
    "event_id source seq occurred_at tenant_id request_id attempt project_id api_key_id model version replica endpoint "
    "input cached_input output reasoning requests final estimated end_reason"
).split()

consumer = Consumer(
    {
        "bootstrap.servers": brokers,
        "group.id": "plain",
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
    }
)
consumer.subscribe([topic])
began, done = None, 0
while began is None or time.monotonic() - began < float(seconds):
    messages = consumer.consume(BATCH, timeout=10)
    if not messages:
        break
    began = began or time.monotonic()
    rows = []
    for message in messages:
        if message.error():
            sys.exit(str(message.error()))
        if message.value() is None:
            continue
        event = fastavro.schemaless_reader(io.BytesIO(message.value()[5:]), schema)
        event["occurred_at"] = event["occurred_at"].strftime("%Y-%m-%d %H:%M:%S.%f")
        row = (message.partition(), message.offset(), *(event[name] for name in COLUMNS))
        rows.append("\t".join(map(str, row)))
    # As text: the embedded engine takes Native in pieces of a megabyte only, and this is no slower.
    block = "\n".join(rows) + "\n"
    store.raw_insert("plain", ["kafka_partition", "kafka_offset", *COLUMNS], block.encode(), fmt="TabSeparated")
    consumer.commit(asynchronous=False)
    done += len(rows)
print(done / (time.monotonic() - began))
store.command("DROP TABLE plain")
consumer.close()
