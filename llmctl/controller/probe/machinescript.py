"""The part of a probe's script that looks at the machine itself; runs between `script.SHELL`'s own sections.

Files are read by the shell's own `read`: each program that is started costs a millisecond, and there are
dozens of files. What is missing, unreadable or hangs (name service, journal) leaves its section empty.
"""

from __future__ import annotations

HELPERS = r"""
one() { L=; [ -r "$2" ] && IFS= read -r L <"$2"; printf '%s\t%s\n' "$1" "$L"; } 2>/dev/null
all() { [ -r "$1" ] && while IFS= read -r L || [ -n "$L" ]; do printf '%s\n' "$L"; done <"$1"; } 2>/dev/null
have() { command -v "$1" >/dev/null 2>&1; }
within() { S=$1; shift; if have timeout; then timeout "$S" "$@"; else "$@"; fi; } 2>/dev/null
"""

CLOCK = r"""
sec clock; date +%s.%N
"""

IDENTITY = r"""
sec identity
one boot_id /proc/sys/kernel/random/boot_id
if [ -s /etc/machine-id ]; then one machine_id /etc/machine-id
else one machine_id /var/lib/dbus/machine-id; fi
"""

MACHINE = r"""
one hostname /proc/sys/kernel/hostname; NAME=$L
one uptime /proc/uptime
ME=$(id -un 2>/dev/null); printf 'user\t%s\n' "$ME"
printf 'workdir\t%s\n' "$(stat -L -c %d:%i "$W" 2>/dev/null)"
sec cpu; sed -n '/^$/q;p' /proc/cpuinfo 2>/dev/null
one online /sys/devices/system/cpu/online
one smt /sys/devices/system/cpu/smt/active
sec meminfo
while read -r K V U; do
  case $K in MemAvailable:|SwapTotal:) echo "$K $V $U";; esac
done 2>/dev/null </proc/meminfo
sec cgroup
while IFS=: read -r I C P; do
  case ,$C, in
  ,,) B=/sys/fs/cgroup; F="cpu.max memory.max pids.max cpuset.cpus.effective"
    [ -e $B/cgroup.controllers ] || B=/sys/fs/cgroup/unified;;
  *,cpu,*) B=/sys/fs/cgroup/cpu; F="cpu.cfs_quota_us cpu.cfs_period_us";;
  *,memory,*) B=/sys/fs/cgroup/memory; F=memory.limit_in_bytes;;
  *,cpuset,*) B=/sys/fs/cgroup/cpuset; F=cpuset.effective_cpus;;
  *,pids,*) B=/sys/fs/cgroup/pids; F=pids.max;;
  *) continue;;
  esac
  P=${P%/}
  while :; do
    for f in $F; do [ -r "$B$P/$f" ] && one "$P/$f" "$B$P/$f"; done
    [ -n "$P" ] || break
    P=${P%/*}
  done
done 2>/dev/null </proc/self/cgroup
sec limits; all /proc/self/limits
sec disks; for p in "$W" "$HOME" /tmp /dev/shm; do
  [ -e "$p" ] && { printf 'path\t%s\n' "$p"; df -Pk "$p"; } 2>/dev/null
done
sec inodes; df -Pi "$W" 2>/dev/null
sec mounts
while read -r D M T O R; do
  case $T in proc|sysfs|cgroup*|devpts|mqueue|securityfs|debugfs|tracefs|pstore|bpf|nsfs|autofs|squashfs) ;;
  *) case $M in /var/lib/docker/*|/var/lib/containerd/*|/var/lib/kubelet/*|/run/*|/snap/*) ;;
    *) echo "$D $M $T $O";; esac;;
  esac
done 2>/dev/null </proc/self/mounts
sec links; for d in /sys/class/net/*; do
  case ${d##*/} in veth*|cali*|lxc*|bonding_masters|'*') continue;; esac
  printf 'link\t%s\n' "${d##*/}"
  one mtu $d/mtu; one speed $d/speed; one state $d/operstate; one type $d/type; one mac $d/address
done
sec addresses; have ip && ip -j addr show 2>/dev/null
sec fabric; for d in /sys/class/infiniband/*/ports/*; do
  [ -d "$d" ] || continue
  p=${d%/ports/*}
  printf 'port\t%s %s\n' "${p##*/}" "${d##*/}"
  one state $d/state; one rate $d/rate; one layer $d/link_layer
done
sec ibstat; [ -d /sys/class/infiniband ] || { have ibstat && within 5 ibstat; } 2>/dev/null
sec gpuapps; have nvidia-smi && [ -z "$HUNG" ] && within 5 nvidia-smi \
  --query-compute-apps=gpu_uuid,pid,used_memory,process_name --format=csv,noheader,nounits 2>&1 |
while IFS=, read -r G I R; do
  I=${I# }
  case $I in ''|*[!0-9]*) echo "$G,$I,$R"; continue;; esac
  printf '%s,%s,%s\tuser=%s run=%s\n' "$G" "$I" "$R" "$(stat -c %U /proc/$I 2>/dev/null)" \
    "$(tr '\0' '\n' 2>/dev/null </proc/$I/environ | sed -n 's/^LLMCTL_RUN_ID=//p')"
done
sec xid; have nvidia-smi &&
  { dmesg || [ -z "$FULL" ] || within 5 journalctl -k -b -q --no-pager; } 2>/dev/null |
  grep -E 'NVRM: (Xid|.*fallen off|The NVIDIA GPU|GPU at )' | tail -n 60
sec rocm
if have rocm-smi; then
  within 10 rocm-smi --showproductname --showmeminfo vram --showdriverversion --json
elif have amd-smi; then within 10 amd-smi static --asic --vram --driver --bus; fi 2>/dev/null
sec drained; all "$W/drained.json"
sec sums; N=0; for d; do N=$((N+1)); [ $N -le 5 ] || { [ -r "$d" ] && cksum <"$d" || echo; } 2>/dev/null; done
"""

# A name service that hangs costs 3 s, and no job depends on its answer: it is asked for people only.
FULL = r"""
sec resolves; have getent && { within 3 getent ahostsv4 "$NAME" || echo none; }
sec smi; have nvidia-smi && [ -z "$HUNG" ] && within 5 nvidia-smi 2>&1
sec virt; have systemd-detect-virt && systemd-detect-virt
one vendor /sys/class/dmi/id/sys_vendor; one product /sys/class/dmi/id/product_name
for f in /.dockerenv /run/.containerenv /.singularity.d; do [ -e $f ] && printf 'container\t%s\n' $f; done
sec runtimes; for t in docker podman apptainer singularity nerdctl enroot nvidia-ctk; do
  have $t && echo $t; done
sec cuda; all /usr/local/cuda/version.json
for d in /usr/local/cuda-[0-9]* /opt/rocm-[0-9]*; do [ -d "$d" ] && echo "$d"; done
for f in /usr/lib/*/libnccl.so.2.* /usr/lib64/libnccl.so.2.* /usr/local/lib/libnccl.so.2.*; do
  [ -e "$f" ] && echo "$f"; done
sec firewall; for t in nft iptables ufw firewall-cmd; do have $t && echo "tool $t"; done
[ -r /etc/ufw/ufw.conf ] &&
  while read -r L; do case $L in ENABLED=*) echo "ufw $L";; esac; done </etc/ufw/ufw.conf
if [ "$ME" != root ]; then :
elif have nft; then echo asked; within 3 nft list chains || echo unreadable
elif have iptables; then echo asked; within 3 iptables -S INPUT || echo unreadable; fi 2>/dev/null
sec libc; getconf GNU_LIBC_VERSION 2>/dev/null
sec envs; for l in "$W"/env/by/*; do
  [ -L "$l" ] && [ -r "$l/ready.json" ] || continue
  one "${l##*/}" "$l/ready.json"; [ -x "$l/bin/python" ] && echo usable
done
sec pythons
B=; for d in $(IFS=:; echo $PATH) "$HOME/.venv/bin" "$HOME/venv/bin" "$HOME/miniconda3/bin" \
  "$HOME/anaconda3/bin" /opt/conda/bin "$W"/env/*/bin; do
  case $d in */shims) continue;; esac  # a version manager's stand-ins: they take seconds to say who they are
  [ -L "${d%/}" ] && [ "$d" = /bin ] && continue
  case " $B " in *" $d "*) continue;; esac; B="$B $d"
  for p in "$d"/python3 "$d"/python3.[0-9] "$d"/python3.[0-9][0-9]; do
    [ -x "$p" ] || continue
    [ "$p" != "$d/python3" ] && [ "$p" -ef "$d/python3" ] && continue
    printf 'python\t%s\t%s\n' "$p" "$(within 2 "$p" -V 2>&1)"
    for s in "$d"/../lib/python3*/ensurepip; do [ -d "$s" ] && echo "pip $s"; done
    for s in "$d"/../lib/python3*/site-packages/torch-*.dist-info \
      "$d"/../lib/python3*/dist-packages/torch-*.dist-info; do [ -d "$s" ] && echo "torch $s"; done
  done
done
"""

END = r"""
sec clockend; date +%s.%N
"""
