-- A row of a sealed month stands for many, and says in `folded` how many more: sums must know it. The new projection is made for the
-- parts that are there in the background; until then their rows are read.
ALTER TABLE requests ADD PROJECTION IF NOT EXISTS ends
(
    SELECT
        kind, tenant_id, slot, model, endpoint, status, end_reason, log_hour, kafka_partition,
        count(), sum(folded), sum(attempts)
    GROUP BY kind, tenant_id, slot, model, endpoint, status, end_reason, log_hour, kafka_partition
);

ALTER TABLE requests MATERIALIZE PROJECTION IF EXISTS ends;

ALTER TABLE requests DROP PROJECTION IF EXISTS endings;
