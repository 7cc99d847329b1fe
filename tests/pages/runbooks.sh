# shellcheck shell=bash
# Lost server, without the hooks: a new one with an empty volume.
export LIFEBOAT_MIN_FREE_MB=1
cd "$PROJECT"
lab sidecar
lab settle
lab sql "insert into t values('before the loss')"
kamal accessory exec lifeboat --reuse "lifeboat sync" >"$LAB/out"
lab lose
doc 'kamal accessory boot lifeboat'
doc 'kamal accessory exec lifeboat --reuse "lifeboat restore --all --if-not-exists"'
is "$(lab sql 'select group_concat(a) from t')" 'first,before the loss'
