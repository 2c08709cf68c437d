"""What runs on a host during a push: one POSIX sh script, and a Python unpacker where GNU tar is missing.

The host says                     the controller says
  hello CODEC BASE|- TREE...        (the script's arguments name the base; it is being cloned already)
                                    HASH FROM|- NUMBER-OF-BYTES-TO-REMOVE
  have | send                       NUL-ended paths to remove, then the compressed tar, then EOF
  done

Hidden names in code/: `.new-<nonce>` is a tree in the making; `.spare-<hash>` is a clone of the newest tree,
made after a push so that the next one need not wait for it (measured: cloning is most of a small push).
Both are removed a day after their last use.
"""

SCRIPT = r"""
umask 077
w=$1 early=$2 nonce=$3 codec=$4 py=$5 unpacker=$6
case $w in "~") w=$HOME ;; "~/"*) w=$HOME/${w#"~/"} ;; esac
[ -d "$w/code" ] || mkdir -p -- "$w/code" || exit 1
cd "$w/code" || exit 1
new=.new-$nonce clone= has=-
drop() {
  [ -z "$clone" ] || wait "$clone"
  clone=
  rm -rf -- "$new"
}
drop_later() {
  trap '' HUP PIPE
  while [ -n "$clone" ] && kill -0 "$clone" 2>/dev/null; do sleep 1; done
  keep_spare "$early"
}
keep_spare() {
  [ -d "$new" ] && touch -- "$new" && mv -T -- "$new" ".spare-$1" 2>/dev/null || rm -rf -- "$new"
}
trap drop EXIT
trap 'exit 129' HUP INT TERM PIPE
# A short write has no reason in tar's words ("Wrote only 4096 of 10240 bytes"): ask the disk for it.
why() { head -c 65536 /dev/zero >"$new/.room" && rm -f -- "$new/.room"; }
# cp keeps the folder's time: without touch a sweep would take a clone of an old tree for a dead rest.
copy() {
  cp -al -- "$1" "$new" 2>/dev/null || { rm -rf -- "$new" && cp -a -- "$1" "$new"; } && touch -- "$new"
}

if [ -n "$early" ] && [ -d "$early" ]; then
  has=$early
  if ! { mv -T -- ".spare-$early" "$new" && touch -- "$new"; } 2>/dev/null; then
    copy "$early" & clone=$!
  fi
fi
if [ -z "$codec" ]; then
  codec=python
  if tar --version 2>/dev/null | grep -q GNU && head --version 2>/dev/null | grep -q GNU; then
    if command -v zstd >/dev/null; then codec=zstd; elif command -v gzip >/dev/null; then codec=gzip; fi
  fi
  if [ $codec = python ] && ! command -v "$py" >/dev/null; then
    echo "neither GNU tar with gzip nor $py is there to unpack with" >&2
    exit 1
  fi
fi
trees=
[ "$has" != - ] || trees=$(ls -t | head -n 32 | tr '\n' ' ')
echo "hello $codec $has $trees"

read -r hash from removed || exit 1
case $hash in *[!0-9a-f]*|"") echo "no tree hash: $hash" >&2; exit 1 ;; esac
if [ -d "$hash" ]; then
  echo have
  trap - EXIT
  [ "$has" = - ] || (drop_later) </dev/null >/dev/null 2>&1 &
  exit 0
fi
echo send
if [ "$from" = "$has" ] && [ "$from" != - ]; then
  [ -z "$clone" ] || wait "$clone" || exit 1
  clone=
else
  drop
  if [ "$from" = - ]; then mkdir -- "$new" || exit 1; else copy "$from" || exit 1; fi
fi

if [ "$codec" = python ]; then
  "$py" -c "$unpacker" "$new" "$removed" || exit 1
else
  [ "$removed" = 0 ] || head -c "$removed" | (cd "$new" && xargs -0 rm -rf --) || exit 1
  ends=$({ { "$codec" -dcq; echo "unpack=$?" >&3; } | tar -xpof - -C "$new" >&2; echo "tar=$?" >&3; } 3>&1)
  case $ends in *tar=0*) ;; *) why; exit 1 ;; esac
  case $ends in *unpack=0*) ;; *) exit 1 ;; esac
fi
if ! mv -T -- "$new" "$hash" 2>/dev/null; then
  [ -d "$hash" ] || { mv -- "$new" "$hash" || exit 1; }
fi
echo done
# In (…) &: a redirected function would keep copies of our pipes, and the session would wait for it.
afterwards() {
  trap '' HUP PIPE
  rm -rf -- "$new"
  find . -maxdepth 1 \( -name '.new-*' -o -name '.spare-*' \) -mmin +1440 -exec rm -rf -- {} +
  [ -d ".spare-$hash" ] || { copy "$hash" && keep_spare "$hash"; }
}
trap - EXIT
(afterwards) </dev/null >/dev/null 2>&1 &
"""

UNPACKER = r"""
import gzip, os, shutil, sys, tarfile
new, removed = os.fsencode(sys.argv[1]), int(sys.argv[2])
stdin = sys.stdin.buffer

def inside(path):
    if path.startswith(b"/") or b".." in path.split(b"/"):
        sys.exit("unpack: a path leaves the tree: %r" % path)
    parts = path.split(b"/")
    for n in range(1, len(parts)):
        if os.path.islink(os.path.join(new, *parts[:n])):
            sys.exit("unpack: a path goes through a link: %r" % path)
    return os.path.join(new, path)

for path in stdin.read(removed).split(b"\0"):
    if path:
        full = inside(path)
        if os.path.isdir(full) and not os.path.islink(full):
            shutil.rmtree(full)
        elif os.path.lexists(full):
            os.unlink(full)

plain = gzip.GzipFile(fileobj=stdin)
try:
    with tarfile.open(fileobj=plain, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            full = inside(os.fsencode(member.name))
            os.makedirs(os.path.dirname(full), exist_ok=True)
            if member.issym():
                os.symlink(os.fsencode(member.linkname), full)
                continue
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(full, flags, member.mode & 0o700), "wb") as out:
                shutil.copyfileobj(archive.extractfile(member), out, 1 << 20)
            os.utime(full, (member.mtime, member.mtime))
    while plain.read(1 << 20):
        pass
except (OSError, EOFError, tarfile.TarError) as error:
    sys.exit("unpack: %s" % (getattr(error, "strerror", None) or error))
"""
