#!/bin/busybox sh
# Process 1 of the test VM, twice: first in the initramfs, then in a tmpfs. runc needs that move,
# since pivot_root cannot leave an initramfs.
if [ -d /system ]; then
    b=/bin/busybox
    $b mkdir /new
    $b mount -t tmpfs -o mode=755,size=80% system /new
    $b cp -a /system/. /new/
    $b cp /init /new/init
    exec $b switch_root /new /init
fi

export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=0666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
# Token volumes are tmpfs, disks are not: ramfs plays the disk. The tests look for one at the
# folder for temporary files and at the workspace that they were compiled in.
workspace=$(cat /etc/workspace)
for disk in /tmp "$workspace"; do
    mkdir -p "$disk"
    mount -t ramfs disk "$disk"
done
for package in sensor-user tests; do
    mkdir -p "$workspace/$package"
done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf
ip link set lo up

for module in /modules/*.ko; do
    insmod "$module"
done

# What this boot is to do is on the kernel's command line.
for word in $(cat /proc/cmdline); do
    case $word in
    tokentrail.tests=*) tests=${word#*=} ;;
    tokentrail.routes=*) routes=${word#*=} ;;
    # As a kernel without type information has it: an empty place.
    tokentrail.btf=hidden) mount -t tmpfs hidden /sys/kernel/btf ;;
    esac
done

# These routes must work here, the first must be chosen: a test that sees others fails.
export TOKENTRAIL_EXPECT_ROUTES="$routes" TOKENTRAIL_EXPECT_ROUTE="${routes%%,*}"
export TOKENTRAIL_BIN=/bin/tokentrail TOKENTRAIL_FACTS=/tmp/facts RUST_BACKTRACE=0 HOME=/tmp
# What a test skips, and why, is for people who read the console.
export RUST_TEST_NOCAPTURE=1
echo "tokentrail-vm: kernel: $(uname -r)"
IFS=,
for test in $tests; do
    echo "tokentrail-vm: $test"
    # `test@route`: on this route alone.
    case $test in
    *@*) export TOKENTRAIL_TEST_ROUTE="${test#*@}" ;;
    *) unset TOKENTRAIL_TEST_ROUTE ;;
    esac
    # A test's own output ends where its process ends: the next line starts on a fresh one.
    "/tests/${test%@*}" --test-threads=1 </dev/null 2>&1 || echo "tokentrail-vm: failed: $test $?"
done
while read -r fact; do
    echo "tokentrail-vm: fact: $fact"
done </tmp/facts
echo "tokentrail-vm: done"
poweroff -f
