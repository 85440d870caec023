#!/bin/sh
# Set up what `make` needs, then run Python there with the arguments given.
#
#     tests/setup.sh demo   [ARGUMENT...]   PyNaCl, and the programs that the demo shows
#     tests/setup.sh check  [ARGUMENT...]   lint, types and fast tests, in .venv
#     tests/setup.sh test   [ARGUMENT...]   all of it
#     tests/setup.sh bench  [ARGUMENT...]   and the programs that it is measured beside
#
# As root, where there is apt, it says what is missing and how much that is, and installs it.  Elsewhere it says what
# to install and goes on with what there is.  Where nothing is missing it changes nothing and says nothing.  No service
# is started or enabled.

# shellcheck disable=SC2086  # lists of words are split on purpose
set -efu

LIBRARY='pynacl>=1.5'
TOOLS='pytest>=7.2 hypothesis>=6.60 noiseprotocol>=0.3.1 ruff>=0.12 mypy>=1.11'

# command      Debian's package     needed for
PROGRAMS='
  ip           iproute2             demo test bench
  babeld       babeld               demo test
  radvd        radvd                demo test
  bird         bird2                test
  dnsmasq      dnsmasq-base         test bench
  kea-dhcp6    kea-dhcp6-server     bench
  dhcpd        isc-dhcp-server      bench
  ndppd        ndppd                test bench
  npd6         npd6                 test bench
  taskset      util-linux           bench
  wg           wireguard-tools      demo test bench
  wireguard-go wireguard-go         demo test bench
  busybox      busybox              test bench
  nft          nftables             test bench
  tcpdump      tcpdump              test
  ping         iputils-ping         test
  ndisc6       ndisc6               test
  strace       strace               test
  sysctl       procps               test
  jq           jq                   check test
  shellcheck   shellcheck           check test
  chromium     chromium             test
  systemd-analyze systemd           test
'
ROOT=${DPKG_ROOT:-}       # of the machine; tests have a small one
BUNDLE=$ROOT/etc/ssl/certs/ca-certificates.crt
POLICY=$ROOT/usr/sbin/policy-rc.d

say() { echo "setup: $*" >&2; }


# ---- looking

missing_programs() {
    echo "$PROGRAMS" | while read -r command package purposes; do
        case " $purposes " in
            *" $purpose "*) command -v "$command" >/dev/null || printf ' %s' "$package" ;;
        esac
    done
}

# Has this Python what is needed?  In .venv pip's list is remembered: the linters are there too, or not yet.
can() {
    "$1" -c '
import sys
from importlib.util import find_spec
import nacl.bindings
sys.exit(sys.version_info < (3, 11) or None in map(find_spec, sys.argv[1:]))' $modules 2>/dev/null
}

# The first Python here that can: prints its name.
any_python() {
    for name in "$PWD/.venv/bin/python" python3 /usr/bin/python3; do
        if can "$name"; then echo "$name"; return; fi
    done
    return 1
}

# Nothing more to do for Python: for the demo any that can will do, for the rest .venv must be up to date.
ready() {
    case $purpose in
        demo) any_python >/dev/null ;;
        *)    [ "$(cat .venv/ready 2>/dev/null)" = "$wheels" ] && can .venv/bin/python ;;
    esac
}

# The first Python here that is new enough to make .venv from.
new_python() {
    for name in python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"; return
        fi
    done
    say 'this needs Python 3.11 or newer'
    return 1
}

can_make_venv() { "$(new_python)" -c 'import ensurepip, venv' 2>/dev/null; }

# What Debian packages apart, and .venv cannot be made without.  (For the demo its PyNaCl is the short way.)
missing_python() {
    if [ "$purpose" = demo ]; then
        { can_make_venv && ! administrator; } || printf ' python3-nacl'
    else
        can_make_venv || printf ' python3-venv'
    fi
}

administrator() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }


# ---- doing

# Run in silence; where it fails, show the end of what it said (addresses are the machine's own affair).
quietly() {
    log=${log:-$(mktemp)}
    "$@" >"$log" 2>&1 </dev/null && return
    tail -n 5 "$log" | sed -e 's#[a-z]*://[^ ]*#ADDRESS#g' -e "s#'[^ ']*\.[^ ']*'#ADDRESS#g" -e 's/^/    /' >&2
    return 1
}

restore_bundle() { [ -z "${kept-}" ] || { cat "$kept" >"$BUNDLE"; rm -f "$kept"; kept=; }; }
tidy() { disable_new; restore_bundle; rm -f ${log:+"$log"} ${policy:+"$policy"}; log='' policy=''; }
trap tidy EXIT
trap 'exit 1' HUP INT TERM

apt() { quietly apt-get -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends "$@"; }

# What that would be, as apt tells it.  (Asked with --assume-no it would install where it has nothing to ask.)
amount() {
    LC_ALL=C apt-get -q -y --no-install-recommends --print-uris install "$@" 2>/dev/null | awk '
        / newly installed/         { n = $1 + $3 }
        /^Need to get /            { sub(/^Need to get /, ""); sub(/ of archives.*/, ""); fetched = $0 }
        /^After this operation, /  { sub(/^After this operation, /, ""); sub(/ of additional.*/, " more on disk")
                                     sub(/ disk space will be freed.*/, " less on disk"); kept = $0 }
        END { if (!n) exit 1; print n (n > 1 ? " packages" : " package") ", " fetched " to download, " kept }'
}

# What starts at boot, by systemd or by init: a link a line.  And what is installed, a package a line.
enabled() { find "$ROOT/etc" -type l \( -path '*/etc/systemd/*' -o -path '*/etc/rc[2-5S].d/S*' \) 2>/dev/null; }
installed() { dpkg-query -W -f '${db:Status-Abbrev} ${Version} ${binary:Package}\n'; }

# Of what was not enabled before: disable what the packages bring along that have come since.  But systemd's own are
# left: where it is new another init boots this machine, or none; and whoever takes it for that wants its consoles.
disable_new() {
    [ -n "${had-}" ] || return 0
    new=$(installed | grep -vxF "$had" | sed -e 's/.* //' -e '/^systemd$/d')
    units=$(dpkg-query -L $new 2>/dev/null | sed -n 's#.*/\(systemd/system\|systemd/user\|etc/init\.d\)/##p')
    [ -z "$new" ] || enabled | grep -vxF "$boots" | while read -r link; do
        unit=$(readlink "$link") || continue
        unit=${unit##*/}
        echo "$units" | grep -qxF "$unit" || continue
        case $link in
            */etc/systemd/*) rm "$link" ;;                       # this is all that `systemctl disable` does
            *)               update-rc.d "$unit" disable ;;
        esac
    done >/dev/null 2>&1 || :
    had=
}

# With a policy-rc.d, gone when we leave, no package starts its service now; disabled, nor at the next boot.
# A bundle of certificates put there by hand is not for ca-certificates, which venv brings along, to replace.
apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    had=$(installed)
    boots=$(enabled)
    if [ ! -e "$POLICY" ]; then
        policy=$POLICY
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    if [ -s "$BUNDLE" ] && ! command -v update-ca-certificates >/dev/null; then
        kept=$(mktemp)
        cat "$BUNDLE" >"$kept"
    fi
    if amount=$(amount $1) || { apt update 2>/dev/null; amount=$(amount $1); }; then
        say "installing$1: $amount"
        apt install $1 2>/dev/null || { apt update; apt install $1; } || one_by_one $1
    else
        apt install $1 || one_by_one $1                          # it fails, and says why
    fi
    disable_new
    restore_bundle
}

one_by_one() {
    failed=
    for package; do
        amount=$(amount "$package") && say "installing $package: $amount"
        apt install "$package" 2>/dev/null || failed="$failed $package"
    done
    [ -z "$failed" ] || say "could not install$failed; going on without"
}

make_venv() {
    can_make_venv || return
    say "making .venv: pip installs $wheels: about $size on disk"
    .venv/bin/python -m pip --version >/dev/null 2>&1 || quietly "$(new_python)" -m venv --clear .venv || return
    quietly .venv/bin/python -m pip install -q --no-input --disable-pip-version-check $wheels || return
    echo "$wheels" >.venv/ready
}


# ---- the way through

purpose=${1:-}
case $purpose in
    demo)             modules=''                  wheels=$LIBRARY
                      size='3 packages, 2 MB to download, 20 MB' ;;
    check|test|bench) modules='pytest hypothesis' wheels="$LIBRARY $TOOLS"
                      size='20 packages, 36 MB to download, 150 MB' ;;
    *)          sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
shift
cd "$(dirname "$0")/.."
PATH=$PATH:$ROOT/usr/sbin:$ROOT/sbin
export PATH

missing=$(missing_programs)
ready || missing=$missing$(missing_python)
if [ -n "$missing" ] && administrator; then
    apt_install "$missing"
elif [ -n "$missing" ]; then
    say "missing here. Ask your administrator: apt install$missing"
fi
ready || make_venv || say 'no .venv could be made; going on without'
python=$(any_python) || { say 'no Python here has what this needs'; exit 1; }
tidy
[ $# -eq 0 ] || exec "$python" "$@"
