# shellcheck shell=sh
# Everything in the image is read-only and there may be no home: programs write under $TMPDIR alone. To be sourced.
own=${TMPDIR:-/tmp}/cosmicai-$(id -u)
export COSMICAI_CACHE="${COSMICAI_CACHE:-$own}" MPLCONFIGDIR="$own/matplotlib"
export XDG_CACHE_HOME="$own/cache" XDG_CONFIG_HOME="$own/config"
unset own
