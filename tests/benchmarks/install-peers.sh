#!/bin/sh
# Installs the peers that the benchmarks run beside us, as far as that is Debian's packages and we are root, and says
# what is missing. Called by tox run -e bench; a peer that is missing is named in the results.
packages="busybox-static crun podman"
missing=
for one in $packages; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$one" 2>/dev/null)" = installed ] || missing="$missing $one"
done
if [ -n "$missing" ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # RUNLEVEL: invoke-rc.d(8) starts no service then.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null && missing=
fi
for one in $missing; do
    echo "peer not installed: $one (as root: apt-get install $one)" >&2
done
exit 0
