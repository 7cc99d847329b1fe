CREATE EXTENSION pgcrypto;
CREATE EXTENSION pg_trgm;
CREATE EXTENSION hstore;
CREATE TABLE customers (
  id bigserial PRIMARY KEY,
  name text NOT NULL,
  lower_name text GENERATED ALWAYS AS (lower(name)) STORED,
  extra hstore
);
CREATE INDEX customers_trgm ON customers USING gin (name gin_trgm_ops);
CREATE TABLE orders (
  id bigserial PRIMARY KEY,
  customer_id bigint NOT NULL REFERENCES customers,
  amount numeric CHECK (amount >= 0),
  noise bytea
);
CREATE TABLE events (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO customers (name, extra) SELECT 'Customer ' || n, hstore('n', n::text) FROM generate_series(1, 200) n;
INSERT INTO orders (customer_id, amount, noise) SELECT 1 + n % 200, n, gen_random_bytes(300) FROM generate_series(1, 2000) n;
INSERT INTO events SELECT '2025-06-01'::timestamptz + n * interval '1 day', E'tab\tand \\ newline\n' || n FROM generate_series(1, 400) n;
CREATE VIEW totals AS SELECT customer_id, sum(amount) AS total FROM orders GROUP BY 1;
SELECT lo_from_bytea(4711, (SELECT string_agg(gen_random_bytes(1000), '') FROM generate_series(1, 100)));
GRANT SELECT ON customers TO pg_monitor;
ANALYZE;
