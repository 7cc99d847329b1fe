//! The tables of Solid Queue, Solid Cache and Solid Cable as Rails 8 makes them from `db/queue_schema.rb`, `db/cache_schema.rb` and
//! `db/cable_schema.rb`: columns, types and indexes that those document, in SQL that SQLite takes.

use std::path::Path;

use super::python;

/// What ActiveRecord makes of `create_table` and `t.index` in SQLite.
const QUEUE: &str = r#"
create table "solid_queue_jobs" ("id" integer primary key autoincrement not null, "queue_name" varchar not null, "class_name" varchar not null,
  "arguments" text, "priority" integer default 0 not null, "active_job_id" varchar, "scheduled_at" datetime(6), "finished_at" datetime(6),
  "concurrency_key" varchar, "created_at" datetime(6) not null, "updated_at" datetime(6) not null);
create index "index_solid_queue_jobs_on_active_job_id" on "solid_queue_jobs" ("active_job_id");
create index "index_solid_queue_jobs_on_class_name" on "solid_queue_jobs" ("class_name");
create index "index_solid_queue_jobs_on_finished_at" on "solid_queue_jobs" ("finished_at");
create index "index_solid_queue_jobs_for_filtering" on "solid_queue_jobs" ("queue_name", "finished_at");
create index "index_solid_queue_jobs_for_alerting" on "solid_queue_jobs" ("scheduled_at", "finished_at");
create table "solid_queue_pauses" ("id" integer primary key autoincrement not null, "queue_name" varchar not null, "created_at" datetime(6) not null);
create unique index "index_solid_queue_pauses_on_queue_name" on "solid_queue_pauses" ("queue_name");
create table "solid_queue_processes" ("id" integer primary key autoincrement not null, "kind" varchar not null, "last_heartbeat_at" datetime(6) not null,
  "supervisor_id" bigint, "pid" integer not null, "hostname" varchar, "metadata" text, "created_at" datetime(6) not null, "name" varchar not null);
create index "index_solid_queue_processes_on_last_heartbeat_at" on "solid_queue_processes" ("last_heartbeat_at");
create unique index "index_solid_queue_processes_on_name_and_supervisor_id" on "solid_queue_processes" ("name", "supervisor_id");
create index "index_solid_queue_processes_on_supervisor_id" on "solid_queue_processes" ("supervisor_id");
create table "solid_queue_recurring_tasks" ("id" integer primary key autoincrement not null, "key" varchar not null, "schedule" varchar not null,
  "command" varchar(2048), "class_name" varchar, "arguments" text, "queue_name" varchar, "priority" integer default 0, "static" boolean default 1 not null,
  "description" text, "created_at" datetime(6) not null, "updated_at" datetime(6) not null);
create unique index "index_solid_queue_recurring_tasks_on_key" on "solid_queue_recurring_tasks" ("key");
create index "index_solid_queue_recurring_tasks_on_static" on "solid_queue_recurring_tasks" ("static");
create table "solid_queue_semaphores" ("id" integer primary key autoincrement not null, "key" varchar not null, "value" integer default 1 not null,
  "expires_at" datetime(6) not null, "created_at" datetime(6) not null, "updated_at" datetime(6) not null);
create index "index_solid_queue_semaphores_on_expires_at" on "solid_queue_semaphores" ("expires_at");
create index "index_solid_queue_semaphores_on_key_and_value" on "solid_queue_semaphores" ("key", "value");
create unique index "index_solid_queue_semaphores_on_key" on "solid_queue_semaphores" ("key");
create table "solid_queue_blocked_executions" ("id" integer primary key autoincrement not null, "job_id" bigint not null, "queue_name" varchar not null,
  "priority" integer default 0 not null, "concurrency_key" varchar not null, "expires_at" datetime(6) not null, "created_at" datetime(6) not null,
  foreign key ("job_id") references "solid_queue_jobs" ("id") on delete cascade);
create index "index_solid_queue_blocked_executions_for_release" on "solid_queue_blocked_executions" ("concurrency_key", "priority", "job_id");
create index "index_solid_queue_blocked_executions_for_maintenance" on "solid_queue_blocked_executions" ("expires_at", "concurrency_key");
create unique index "index_solid_queue_blocked_executions_on_job_id" on "solid_queue_blocked_executions" ("job_id");
create table "solid_queue_claimed_executions" ("id" integer primary key autoincrement not null, "job_id" bigint not null, "process_id" bigint,
  "created_at" datetime(6) not null, foreign key ("job_id") references "solid_queue_jobs" ("id") on delete cascade);
create unique index "index_solid_queue_claimed_executions_on_job_id" on "solid_queue_claimed_executions" ("job_id");
create index "index_solid_queue_claimed_executions_on_process_id_and_job_id" on "solid_queue_claimed_executions" ("process_id", "job_id");
create table "solid_queue_failed_executions" ("id" integer primary key autoincrement not null, "job_id" bigint not null, "error" text,
  "created_at" datetime(6) not null, foreign key ("job_id") references "solid_queue_jobs" ("id") on delete cascade);
create unique index "index_solid_queue_failed_executions_on_job_id" on "solid_queue_failed_executions" ("job_id");
create table "solid_queue_ready_executions" ("id" integer primary key autoincrement not null, "job_id" bigint not null, "queue_name" varchar not null,
  "priority" integer default 0 not null, "created_at" datetime(6) not null, foreign key ("job_id") references "solid_queue_jobs" ("id") on delete cascade);
create unique index "index_solid_queue_ready_executions_on_job_id" on "solid_queue_ready_executions" ("job_id");
create index "index_solid_queue_poll_all" on "solid_queue_ready_executions" ("priority", "job_id");
create index "index_solid_queue_poll_by_queue" on "solid_queue_ready_executions" ("queue_name", "priority", "job_id");
create table "solid_queue_recurring_executions" ("id" integer primary key autoincrement not null, "job_id" bigint not null, "task_key" varchar not null,
  "run_at" datetime(6) not null, "created_at" datetime(6) not null, foreign key ("job_id") references "solid_queue_jobs" ("id") on delete cascade);
create unique index "index_solid_queue_recurring_executions_on_job_id" on "solid_queue_recurring_executions" ("job_id");
create unique index "index_solid_queue_recurring_executions_on_task_key_and_run_at" on "solid_queue_recurring_executions" ("task_key", "run_at");
create table "solid_queue_scheduled_executions" ("id" integer primary key autoincrement not null, "job_id" bigint not null, "queue_name" varchar not null,
  "priority" integer default 0 not null, "scheduled_at" datetime(6) not null, "created_at" datetime(6) not null,
  foreign key ("job_id") references "solid_queue_jobs" ("id") on delete cascade);
create unique index "index_solid_queue_scheduled_executions_on_job_id" on "solid_queue_scheduled_executions" ("job_id");
create index "index_solid_queue_dispatch_all" on "solid_queue_scheduled_executions" ("scheduled_at", "priority", "job_id");
"#;

const CACHE_AND_CABLE: &str = r#"
create table "solid_cache_entries" ("id" integer primary key autoincrement not null, "key" blob(1024) not null, "value" blob(536870912) not null,
  "created_at" datetime(6) not null, "key_hash" integer(8) not null, "byte_size" integer(4) not null);
create index "index_solid_cache_entries_on_byte_size" on "solid_cache_entries" ("byte_size");
create index "index_solid_cache_entries_on_key_hash_and_byte_size" on "solid_cache_entries" ("key_hash", "byte_size");
create unique index "index_solid_cache_entries_on_key_hash" on "solid_cache_entries" ("key_hash");
create table "solid_cable_messages" ("id" integer primary key autoincrement not null, "channel" blob(1024) not null, "payload" blob(536870912) not null,
  "created_at" datetime(6) not null, "channel_hash" integer(8) not null);
create index "index_solid_cable_messages_on_channel" on "solid_cable_messages" ("channel");
create index "index_solid_cable_messages_on_channel_hash" on "solid_cable_messages" ("channel_hash");
create index "index_solid_cable_messages_on_created_at" on "solid_cable_messages" ("created_at");
"#;

/// What the app's code does, in the functions that a test calls: `job(queue, state, seconds_ago)`, `beat(kind, seconds_ago)`,
/// `entries(count, size)`, `messages(count)`, `pause(queue)`, all in one transaction; `c` is the connection.
const APP: &str = r#"
import hashlib, datetime
def ago(s): return (datetime.datetime.now(datetime.timezone.utc)-datetime.timedelta(seconds=s)).strftime('%Y-%m-%d %H:%M:%S.%f')
def job(queue, state, s=0):
    t=ago(s)
    j=c.execute("insert into solid_queue_jobs(queue_name,class_name,arguments,active_job_id,scheduled_at,created_at,updated_at) values(?,?,?,?,?,?,?)",
        (queue,'ReportJob','{"arguments":["'+'x'*300+'"]}',os.urandom(16).hex(),t,t,t)).lastrowid
    if state=='ready': c.execute("insert into solid_queue_ready_executions(job_id,queue_name,created_at) values(?,?,?)",(j,queue,t))
    if state=='scheduled': c.execute("insert into solid_queue_scheduled_executions(job_id,queue_name,scheduled_at,created_at) values(?,?,?,?)",(j,queue,t,ago(max(s,0))))
    if state=='claimed': c.execute("insert into solid_queue_claimed_executions(job_id,process_id,created_at) values(?,1,?)",(j,t))
    if state=='failed': c.execute("insert into solid_queue_failed_executions(job_id,error,created_at) values(?,?,?)",(j,'{"exception_class":"RuntimeError","backtrace":"'+'y'*9000+'"}',t))
    if state=='blocked': c.execute("insert into solid_queue_blocked_executions(job_id,queue_name,concurrency_key,expires_at,created_at) values(?,?,'k',?,?)",(j,queue,ago(-600),t))
def beat(kind, s=0):
    c.execute("insert into solid_queue_processes(kind,last_heartbeat_at,pid,hostname,metadata,created_at,name) values(?,?,?,'web1','{}',?,?)",(kind,ago(s),os.getpid(),ago(s),kind+'-'+os.urandom(8).hex()))
def pause(queue): c.execute("insert into solid_queue_pauses(queue_name,created_at) values(?,?)",(queue,ago(0)))
def entries(count, size):
    for i in range(count):
        key=('views/'+str(i)).encode()
        h=int.from_bytes(hashlib.sha256(key).digest()[:8],'big',signed=True)
        c.execute("insert into solid_cache_entries(key,value,created_at,key_hash,byte_size) values(?,?,?,?,?)",(key,b'v'*size,ago(0),h,len(key)+size+140))
def messages(count):
    for i in range(count): c.execute("insert into solid_cable_messages(channel,payload,created_at,channel_hash) values(?,?,?,?)",(b'room',b'{}',ago(0),7))
c=conn(); c.execute('begin')
"#;

/// Makes the tables in a database that is there.
pub fn make(db: &Path) {
    let sql = format!("{QUEUE}{CACHE_AND_CABLE}");
    python(
        db,
        &format!("c=conn(); c.executescript({sql:?}); os._exit(0)"),
    );
}

/// The same tables as PostgreSQL has them.
pub fn postgres() -> String {
    let sql = format!("{QUEUE}{CACHE_AND_CABLE}");
    [
        ("integer primary key autoincrement", "bigserial primary key"),
        ("datetime(6)", "timestamp(6)"),
        ("blob(1024)", "bytea"),
        ("blob(536870912)", "bytea"),
        ("integer(8)", "bigint"),
        ("integer(4)", "integer"),
        ("boolean default 1", "boolean default true"),
    ]
    .iter()
    .fold(sql, |sql, (from, to)| sql.replace(from, to))
}

/// Runs calls of the functions above as one commit.
pub fn app(db: &Path, calls: &str) {
    python(
        db,
        &format!("{APP}\n{calls}\nc.execute('commit'); os._exit(0)"),
    );
}
