#!/usr/bin/env python3
"""Runs docs/runbooks.md as it stands, in containers: the app's and the sidecar's, on a shared volume, started at the same moment. And what can only
be seen there: an app and a sidecar that start together on an empty volume, an app that starts in the middle of a restore.

    TAG=... tests/kamal/runbooks.py [TITLE...]          bin/test-containers calls it
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

top = pathlib.Path(__file__).resolve().parents[2]
tag = os.environ["TAG"]

# Blocks in the language of the runbooks, which stand in no document.
SCENES = {
    "App and sidecar start together on an empty volume": """
        lab sql "insert into t values('last before the loss')"
        kamal accessory exec lifeboat --reuse "lifeboat sync"
        lab lose
        lab together
        lab beats
        # The app has made itself an empty database. It does not continue the replica, and the history of the old server stays as it was.
        if kamal accessory exec lifeboat --reuse "lifeboat sync"; then exit 1; fi
        for _ in $(seq 40); do
          if kamal accessory exec lifeboat --reuse "lifeboat status" > status.log 2>&1; then exit 1; fi
          if grep "lifeboat claim production" status.log; then break; fi
          sleep 0.5
        done
        grep "lifeboat claim production" status.log || { cat status.log; exit 1; }
        bin/lifeboat-restore --yes production
        kamal accessory exec lifeboat --reuse "lifeboat claim production"
        lab settle
        test "$(lab sql 'select group_concat(a) from t')" = "first,last before the loss"
    """,
    "An app that starts in the middle of a restore": """
        kamal accessory exec lifeboat --reuse "lifeboat snapshot --label before-v42"
        restored=0 refused=0
        # v40 is the version that has a container: Kamal starts no other.
        # Seconds by which the app is later than the restore, or earlier.
        for order in "restore 0" "restore 0.1" "restore 0.3" "app 0" "app 0.1" "app 0.2" "app 0.3" "app 0.4" "app 0.6" "app 3"; do
          first=${order% *} wait=${order#* }
          kamal app stop
          if [ "$first" = app ]; then kamal app start --version v40 & app=$!; sleep "$wait"; fi
          kamal accessory exec -i lifeboat --reuse "lifeboat restore production --label before-v42 --in-place" > restore.log 2>&1 &
          restore=$!
          if [ "$first" = restore ]; then sleep "$wait"; kamal app start --version v40 & app=$!; fi
          code=0
          wait "$restore" || code=$?
          wait "$app"
          # Restored, or refused because the app was there first.
          case $code in
            0) restored=$((restored + 1)); grep "^lifeboat: ok restore" restore.log ;;
            4) refused=$((refused + 1)) ;;
            *) cat restore.log; exit 1 ;;
          esac
          lab beats
          test "$(lab sql 'pragma integrity_check')" = ok
        done
        test "$restored" -gt 0
        test "$refused" -gt 0
        echo "restored $restored times, gave way to the app $refused times" > "$STUB/note"
    """,
}


def sections():
    """One `##` section, and what is run in it: the hidden blocks of the lab and those that readers see."""
    found, end = {}, None
    for line in (top / "docs/runbooks.md").read_text().splitlines():
        if end:
            if line == end:
                end = None
            else:
                found[title] += line + "\n"
        elif line.startswith("## "):
            title = line[3:]
            found[title] = ""
        elif line in ("```sh test", "<!-- lab"):
            end = "```" if line.startswith("`") else "-->"
    return {title: script for title, script in found.items() if script}


def project(root, name):
    """A folder on a laptop, and one server."""
    shutil.copytree(top / "config/kamal/hooks", root / "project/.kamal/hooks")
    for folder in ("project/bin", "bin", "stub/hosts/web1"):
        (root / folder).mkdir(parents=True)
    (root / "project/bin/lifeboat-restore").symlink_to(top / "bin/lifeboat-restore")
    (root / "bin/kamal").symlink_to(top / "tests/kamal/kamal")
    (root / "bin/lab").symlink_to(top / "tests/kamal/lab-containers")
    (root / "stub/store").write_text(f"{name}-store")
    subprocess.run(["docker", "volume", "create", "--label", f"test={tag}", f"{name}-store"], check=True, capture_output=True)
    (root / "stub/hosts/web1/env").write_text("LIFEBOAT_STORE_URL=file:///data/store\nLIFEBOAT_INSTANCE=web1\n")


def play(title, script, number):
    begun = time.time()
    name = f"{tag}-{number}"
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        project(root, name)
        env = dict(os.environ, STUB=str(root / "stub"), STUB_HOSTS="containers", TMPDIR=folder, LIFEBOAT_MIN_FREE_MB="1",
                   PATH=f"{root}/bin:{os.environ['PATH']}")
        script = f"set -eu\nlab volumes {name}\nlab fill\nlab together\nlab settle\nset -x\n{script}\nlab prove > \"$STUB/proof\"\n"
        done = subprocess.run(["bash", "-c", script], cwd=root / "project", env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        stub = root / "stub"
        if done.returncode:
            print(done.stdout)
            for log in ("hook-output",):
                print((stub / log).read_text() if (stub / log).exists() else "")
            prefix = (stub / "hosts/web1/containers").read_text().strip()
            subprocess.run(["docker", "logs", "--tail", "40", f"{prefix}-lifeboat"])
        else:
            note = (stub / "note").read_text().strip() + "; " if (stub / "note").exists() else ""
            print(f"runbooks: ok: {title} in {time.time() - begun:.0f} s: {note}{(stub / 'proof').read_text().strip()}", flush=True)
    for kind, remove in (("ps -aq", "rm -f"), ("volume ls -q", "volume rm")):
        found = subprocess.run(["docker", *kind.split(), "--filter", f"label=test={tag}"], capture_output=True, text=True).stdout.split()
        if found:
            subprocess.run(["docker", *remove.split(), *found], capture_output=True)
    return done.returncode == 0


def main():
    all_of_them = sections() | SCENES
    wanted = sys.argv[1:] or list(all_of_them)
    failed = [title for number, title in enumerate(wanted) if not play(title, all_of_them[title], number)]
    if failed:
        sys.exit(f"runbooks: FAILED: {', '.join(failed)}")
    print(f"runbooks: ok ({len(wanted)})")


main()
