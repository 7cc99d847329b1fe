# shellcheck shell=bash
mkdir -p config "$LAB/root/data"
app "$LAB/root/data/app.sqlite3"
printf '%s\n' 'service: shop' 'image: you/shop' 'servers: [192.0.2.7]' 'volumes: ["shop_storage:/rails/storage"]' >config/deploy.yml
printf '%s\n' 'production:' '  primary:' '    adapter: sqlite3' '    database: storage/production.sqlite3' >config/database.yml
doc 'lifeboat init --dry-run'
says 'production.sqlite3'
test ! -e config/lifeboat.yml
doc 'lifeboat init'
test -s config/lifeboat.yml
doc 'lifeboat init --kamal'
test -x .kamal/hooks/pre-deploy
grep -q lifeboat config/deploy.yml
mkdir elsewhere
cd elsewhere
doc 'lifeboat init /data --store s3://my-backups/myapp'
"$LIFEBOAT" config check --config lifeboat.yml >"$LAB/out" 2>&1 || fail check
"$LIFEBOAT" sync --config lifeboat.yml >"$LAB/out" 2>&1 || fail sync
