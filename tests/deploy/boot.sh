#!/usr/bin/env bash
# Starts systemd as PID 1 of namespaces of its own, over this machine's file system: what is written goes to memory and is
# gone with it, nothing that is installed here is started, and the network is a loopback.
#
#   tests/deploy/boot.sh FOLDER CGROUP    FOLDER: an empty one to mount things on; CGROUP: one for all that runs in there
#
# Ends when that systemd does; when this is killed, so is that. Needs to be root.
set -euo pipefail

if [[ ${1-} != --inside ]]; then
    folder=$1 cgroup=$2
    echo $$ >"$cgroup/cgroup.procs"
    exec unshare --pid --fork --kill-child --mount --net --uts --ipc --cgroup "$0" --inside "$folder"
fi

folder=$2 root=$2/root
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"

mount -t proc proc "$root/proc"
# Its network's settings are its own; the rest are this machine's.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --bind /proc/sys/net "$root/proc/sys/net"
mount -t sysfs -o ro sysfs "$root/sys"
if [[ $(stat --file-system --format %T /sys/fs/cgroup) == cgroup2fs ]]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for volatile in run tmp var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "$root/$volatile"; done
chmod 755 "$root/run"

# Of what would be started: the journal.
rm -rf "$root"/etc/systemd/system/*.wants "$root"/lib/systemd/system/*.wants "$root"/usr/sbin/policy-rc.d
mkdir "$root/etc/systemd/system/sysinit.target.wants"
ln -s /lib/systemd/system/systemd-journald.service "$root/etc/systemd/system/sysinit.target.wants/"
rm -rf "$root/var/log/journal"
# The least that Debian has: no procps.
rm -f "$root/bin/kill"

ip link set lo up
mkdir "$root/old"
cd "$root"
pivot_root . old
umount -l old
# What systemd prepares in a namespace of its own, such as credentials, is to be seen outside of that.
mount --make-rshared /
exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target
