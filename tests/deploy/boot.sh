#!/usr/bin/env bash
# Starts systemd as PID 1 of namespaces of its own, over this machine's file system: what is written goes to memory and is
# gone with it, what is installed here is not started, and the network is a loopback.
#
#   tests/deploy/boot.sh FOLDER CGROUP    FOLDER: an empty one to mount things on; CGROUP: one for all that runs in there
#
# Ends when that systemd does; when this is killed, or whoever started it ends, so does that. Needs to be root.
set -euo pipefail

if [[ ${1-} != --inside ]]; then
    folder=$1 cgroup=$2
    echo $$ >"$cgroup/cgroup.procs"
    # unshare heeds no SIGTERM, and neither does what it starts: SIGKILL it is. Nobody in there sets clocks or loads modules.
    exec setpriv --pdeathsig KILL --bounding-set=-sys_time,-sys_module,-sys_rawio \
        unshare --pid --fork --kill-child --mount --net --uts --ipc --cgroup "$0" --inside "$folder"
fi

folder=$2 root=$2/root
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"

mount -t proc proc "$root/proc"
# Its network's settings are its own; the rest are this machine's.
for global in sys irq sysrq-trigger; do
    if [[ ! -e $root/proc/$global ]]; then continue; fi
    mount --bind "$root/proc/$global" "$root/proc/$global"
    mount -o remount,bind,ro "$root/proc/$global"
done
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

# From here on every path, and where its links lead, is in there.
mkdir "$root/old"
cd "$root"
pivot_root . old
cd /
umount -l /old
# By which the tests know that they are in there as well.
touch /.zrc-relay-boot
# What systemd prepares in a namespace of its own, such as credentials, is to be seen outside of that.
mount --make-rshared /
for volatile in run tmp var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "/$volatile"; done
chmod 755 /run

# Of what would be started: the journal.
for units in /etc/systemd/system /lib/systemd/system /usr/local/lib/systemd/system; do
    rm -rf "$units"/*.wants "$units"/*.requires "$units"/*.upholds
done
rm -rf /usr/sbin/policy-rc.d /var/log/journal
mkdir /etc/systemd/system/sysinit.target.wants
ln -s /lib/systemd/system/systemd-journald.service /etc/systemd/system/sysinit.target.wants/
# The least that Debian has: no procps.
rm -f /bin/kill

ip link set lo up
exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    SYSTEMD_GENERATOR_PATH=/nonexistent /lib/systemd/systemd --system --unit=multi-user.target
