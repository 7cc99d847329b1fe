CREATE TYPE status AS ENUM ('open', 'paid');
CREATE TABLE customers (
  id bigserial PRIMARY KEY,
  name text NOT NULL,
  lower_name text GENERATED ALWAYS AS (lower(name)) STORED
);
CREATE TABLE orders (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  customer_id bigint NOT NULL REFERENCES customers,
  amount numeric CHECK (amount >= 0),
  state status NOT NULL DEFAULT 'open',
  noise bytea
);
CREATE TABLE events (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO customers (name) SELECT 'Customer ' || n FROM generate_series(1, 200) n;
INSERT INTO orders (customer_id, amount, state, noise)
  SELECT 1 + n % 200, n, CASE n % 2 WHEN 0 THEN 'open'::status ELSE 'paid' END, sha256(n::text::bytea) FROM generate_series(1, 2000) n;
INSERT INTO events SELECT '2025-06-01'::timestamptz + n * interval '1 day', E'tab\tand \\ newline\n' || n FROM generate_series(1, 400) n;
CREATE MATERIALIZED VIEW totals AS SELECT customer_id, sum(amount) AS total FROM orders GROUP BY 1;
SELECT lo_from_bytea(4711, (SELECT string_agg(sha512(n::text::bytea), '') FROM generate_series(1, 2000) n));
GRANT SELECT ON customers TO pg_monitor;
ANALYZE;
