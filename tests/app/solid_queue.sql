-- What Rails 8 makes of Solid Queue's schema on SQLite: the same tables, columns, types, keys and unique indexes.
CREATE TABLE "solid_queue_jobs" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "queue_name" varchar NOT NULL, "class_name" varchar NOT NULL,
  "arguments" text, "priority" integer DEFAULT 0 NOT NULL, "active_job_id" varchar, "scheduled_at" datetime(6), "finished_at" datetime(6),
  "concurrency_key" varchar, "created_at" datetime(6) NOT NULL, "updated_at" datetime(6) NOT NULL);
CREATE INDEX "index_solid_queue_jobs_on_active_job_id" ON "solid_queue_jobs" ("active_job_id");
CREATE INDEX "index_solid_queue_jobs_on_class_name" ON "solid_queue_jobs" ("class_name");
CREATE INDEX "index_solid_queue_jobs_on_finished_at" ON "solid_queue_jobs" ("finished_at");
CREATE INDEX "index_solid_queue_jobs_for_filtering" ON "solid_queue_jobs" ("queue_name", "finished_at");
CREATE INDEX "index_solid_queue_jobs_for_alerting" ON "solid_queue_jobs" ("scheduled_at", "finished_at");
CREATE TABLE "solid_queue_ready_executions" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "job_id" bigint NOT NULL, "queue_name" varchar NOT NULL,
  "priority" integer DEFAULT 0 NOT NULL, "created_at" datetime(6) NOT NULL,
  CONSTRAINT "fk_ready" FOREIGN KEY ("job_id") REFERENCES "solid_queue_jobs" ("id") ON DELETE CASCADE);
CREATE UNIQUE INDEX "index_solid_queue_ready_executions_on_job_id" ON "solid_queue_ready_executions" ("job_id");
CREATE INDEX "index_solid_queue_poll_all" ON "solid_queue_ready_executions" ("priority", "job_id");
CREATE INDEX "index_solid_queue_poll_by_queue" ON "solid_queue_ready_executions" ("queue_name", "priority", "job_id");
CREATE TABLE "solid_queue_scheduled_executions" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "job_id" bigint NOT NULL, "queue_name" varchar NOT NULL,
  "priority" integer DEFAULT 0 NOT NULL, "scheduled_at" datetime(6) NOT NULL, "created_at" datetime(6) NOT NULL,
  CONSTRAINT "fk_scheduled" FOREIGN KEY ("job_id") REFERENCES "solid_queue_jobs" ("id") ON DELETE CASCADE);
CREATE UNIQUE INDEX "index_solid_queue_scheduled_executions_on_job_id" ON "solid_queue_scheduled_executions" ("job_id");
CREATE TABLE "solid_queue_blocked_executions" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "job_id" bigint NOT NULL, "queue_name" varchar NOT NULL,
  "priority" integer DEFAULT 0 NOT NULL, "concurrency_key" varchar NOT NULL, "expires_at" datetime(6) NOT NULL, "created_at" datetime(6) NOT NULL,
  CONSTRAINT "fk_blocked" FOREIGN KEY ("job_id") REFERENCES "solid_queue_jobs" ("id") ON DELETE CASCADE);
CREATE UNIQUE INDEX "index_solid_queue_blocked_executions_on_job_id" ON "solid_queue_blocked_executions" ("job_id");
CREATE TABLE "solid_queue_claimed_executions" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "job_id" bigint NOT NULL, "process_id" bigint,
  "created_at" datetime(6) NOT NULL,
  CONSTRAINT "fk_claimed" FOREIGN KEY ("job_id") REFERENCES "solid_queue_jobs" ("id") ON DELETE CASCADE);
CREATE UNIQUE INDEX "index_solid_queue_claimed_executions_on_job_id" ON "solid_queue_claimed_executions" ("job_id");
CREATE TABLE "solid_queue_failed_executions" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "job_id" bigint NOT NULL, "error" text,
  "created_at" datetime(6) NOT NULL,
  CONSTRAINT "fk_failed" FOREIGN KEY ("job_id") REFERENCES "solid_queue_jobs" ("id") ON DELETE CASCADE);
CREATE UNIQUE INDEX "index_solid_queue_failed_executions_on_job_id" ON "solid_queue_failed_executions" ("job_id");
CREATE TABLE "solid_queue_recurring_tasks" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "key" varchar NOT NULL, "schedule" varchar NOT NULL,
  "command" varchar(2048), "class_name" varchar, "arguments" text, "queue_name" varchar, "priority" integer DEFAULT 0, "static" boolean DEFAULT 1 NOT NULL,
  "description" text, "created_at" datetime(6) NOT NULL, "updated_at" datetime(6) NOT NULL);
CREATE UNIQUE INDEX "index_solid_queue_recurring_tasks_on_key" ON "solid_queue_recurring_tasks" ("key");
CREATE TABLE "solid_queue_recurring_executions" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "job_id" bigint NOT NULL, "task_key" varchar NOT NULL,
  "run_at" datetime(6) NOT NULL, "created_at" datetime(6) NOT NULL,
  CONSTRAINT "fk_recurring" FOREIGN KEY ("job_id") REFERENCES "solid_queue_jobs" ("id") ON DELETE CASCADE);
CREATE UNIQUE INDEX "index_solid_queue_recurring_executions_on_job_id" ON "solid_queue_recurring_executions" ("job_id");
CREATE UNIQUE INDEX "index_solid_queue_recurring_executions_on_task_key_and_run_at" ON "solid_queue_recurring_executions" ("task_key", "run_at");
CREATE TABLE "solid_queue_pauses" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "queue_name" varchar NOT NULL, "created_at" datetime(6) NOT NULL);
CREATE UNIQUE INDEX "index_solid_queue_pauses_on_queue_name" ON "solid_queue_pauses" ("queue_name");
CREATE TABLE "solid_queue_processes" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "kind" varchar NOT NULL, "last_heartbeat_at" datetime(6) NOT NULL,
  "supervisor_id" bigint, "pid" integer NOT NULL, "hostname" varchar, "metadata" text, "created_at" datetime(6) NOT NULL, "name" varchar NOT NULL);
CREATE UNIQUE INDEX "index_solid_queue_processes_on_name_and_supervisor_id" ON "solid_queue_processes" ("name", "supervisor_id");
CREATE TABLE "solid_queue_semaphores" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "key" varchar NOT NULL, "value" integer DEFAULT 1 NOT NULL,
  "expires_at" datetime(6) NOT NULL, "created_at" datetime(6) NOT NULL, "updated_at" datetime(6) NOT NULL);
CREATE UNIQUE INDEX "index_solid_queue_semaphores_on_key" ON "solid_queue_semaphores" ("key");

INSERT INTO solid_queue_jobs(id, queue_name, class_name, finished_at, created_at, updated_at) VALUES
  (1, 'default', 'Done', '2026-11-20 10:00:00.000000', '2026-11-20', '2026-11-20'),
  (2, 'mailers', 'Mail', NULL, '2026-11-20', '2026-11-20'),
  (3, 'default', 'Tomorrow', NULL, '2026-11-20', '2026-11-20'),
  (4, 'solo', 'Blocked', NULL, '2026-11-20', '2026-11-20'),
  (5, 'solo', 'AtWork', NULL, '2026-11-20', '2026-11-20'),
  (6, 'imports', 'Failed', NULL, '2026-11-20', '2026-11-20'),
  (7, 'held', 'Waiting', NULL, '2026-11-20', '2026-11-20');
INSERT INTO solid_queue_ready_executions(job_id, queue_name, created_at) VALUES (2, 'mailers', '2026-11-20'), (7, 'held', '2026-11-20');
INSERT INTO solid_queue_scheduled_executions(job_id, queue_name, scheduled_at, created_at) VALUES (3, 'default', '2026-11-22', '2026-11-20');
INSERT INTO solid_queue_blocked_executions(job_id, queue_name, concurrency_key, expires_at, created_at) VALUES (4, 'solo', 'k', '2026-11-22', '2026-11-20');
INSERT INTO solid_queue_claimed_executions(job_id, process_id, created_at) VALUES (5, 1, '2026-11-20');
INSERT INTO solid_queue_failed_executions(job_id, error, created_at) VALUES (6, 'no', '2026-11-20');
INSERT INTO solid_queue_recurring_tasks(key, schedule, class_name, queue_name, created_at, updated_at) VALUES
  ('report', 'every day', 'Report', 'reports', '2026-11-20', '2026-11-20'), ('tidy', 'every hour', 'Tidy', NULL, '2026-11-20', '2026-11-20');
INSERT INTO solid_queue_recurring_executions(job_id, task_key, run_at, created_at) VALUES (1, 'tidy', '2026-11-20 10:00', '2026-11-20'), (3, 'report', '2026-11-22', '2026-11-20');
INSERT INTO solid_queue_pauses(queue_name, created_at) VALUES ('held', '2026-11-19 00:00:00.000000');
INSERT INTO solid_queue_processes(id, kind, last_heartbeat_at, pid, created_at, name) VALUES (1, 'Worker', '2026-11-20', 9, '2026-11-20', 'worker-1');
INSERT INTO solid_queue_semaphores(key, value, expires_at, created_at, updated_at) VALUES ('k', 0, '2026-11-22', '2026-11-20', '2026-11-20');
