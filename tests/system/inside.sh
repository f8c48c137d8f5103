#!/bin/sh
# Runs in the machine, as root: the tests that `chosen` lists, in each of the ways that `ways` lists.
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/payload/tree:/payload/site PYTHONUNBUFFERED=1
chmod -R a+rX /payload
cd /payload/tree || exit 1
echo "Linux $(uname -r), $(systemctl --version | head -n 1), $(python3 --version), $(stat -fc %T /sys/fs/cgroup)"
# As Ubuntu has it: nobody but its ancestors may look into a process.
sysctl -qw kernel.yama.ptrace_scope=1 2>/dev/null

# An outside for those that reach out: the machine has no network.
ip link add outside type dummy && ip address add 192.0.2.1/24 dev outside && ip link set outside up
ip address add 2001:db8:89::1/64 dev outside nodad

# A disk that is scheduled by weight (blk-iocost), where the kernel has that.
[ ! -e /sys/fs/cgroup/io.cost.qos ] || echo "$(cat /sys/block/vda/dev) enable=1" >/sys/fs/cgroup/io.cost.qos

tests() { "$@" python3 -m pytest -p no:cacheprovider -q -rfEs $(cat /payload/chosen); }
user() {
    runuser -u tester -- env HOME=/home/tester USER=tester LOGNAME=tester XDG_RUNTIME_DIR=/run/user/1000 \
        DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus "$@"
}
scope() { user systemd-run --quiet --user --scope -p Delegate=yes -- "$@"; }

status=0
for way in $(cat /payload/ways); do
    echo "=== $way"
    case $way in
        root) tests env ;;
        user) tests user ;;
        scope) tests scope ;;
    esac || status=1
done
exit $status
