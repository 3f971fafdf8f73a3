-- Seals a month: of its part, which must be one, a part with the rows that stay. ClickHouse gives it its place by renaming it, so that it
-- is there whole or not at all, and does the rest of the work itself after a kill. Done twice, it changes nothing.
ALTER TABLE requests
    UPDATE
        event_id = toUUID('00000000-0000-0000-0000-000000000000'),
        source = toUUID('00000000-0000-0000-0000-000000000000'),
        seq = 0,
        request_id = toUUID('00000000-0000-0000-0000-000000000000'),
        project_id = '',
        api_key_id = toUUID('00000000-0000-0000-0000-000000000000'),
        version = '',
        replica = '',
        stream = false,
        error_code = '',
        received_at = toDateTime64(0, 6, 'UTC'),
        dispatched_at = NULL,
        first_byte_at = NULL,
        attempts = toInt32(joinGet({sealing:String}, 'attempts', CAST(kind, 'Int8'), kafka_offset,
            if(kind = 'source', source, toUUID('00000000-0000-0000-0000-000000000000')))),
        chunk_end = {end:Int64},
        folded = toInt64(joinGet({sealing:String}, 'stands_for', CAST(kind, 'Int8'), kafka_offset,
            if(kind = 'source', source, toUUID('00000000-0000-0000-0000-000000000000')))) - 1
    IN PARTITION ({partition:Int32}, {month:UInt32}) WHERE kind = 'data',
    UPDATE
        log_time = fromUnixTimestamp64Milli({log_time_ms:Int64}, 'UTC'),
        log_hour = {log_hour:Int64}
    IN PARTITION ({partition:Int32}, {month:UInt32}) WHERE kind IN ('source', 'chunk'),
    UPDATE
        seq = {chunks:UInt64},
        chunk_end = {end:Int64},
        folded = {folded:Int64},
        duplicates = {duplicates:Int64},
        dead = {dead:Int64},
        marks = {marks:Int64},
        chain = toFixedString(unhex({chain:String}), 32)
    IN PARTITION ({partition:Int32}, {month:UInt32}) WHERE kind = 'chunk',
    UPDATE chunk_first = {first:Int64}
    IN PARTITION ({partition:Int32}, {month:UInt32}) WHERE 1,
    DELETE
    IN PARTITION ({partition:Int32}, {month:UInt32}) WHERE joinGet({sealing:String}, 'stands_for', CAST(kind, 'Int8'), kafka_offset,
            if(kind = 'source', source, toUUID('00000000-0000-0000-0000-000000000000'))) = 0
