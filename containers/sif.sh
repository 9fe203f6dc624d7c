#!/usr/bin/env bash
# Makes cosmicai.sif, for Apptainer, of an image that containers/build.sh made or that a registry has.
#
#   containers/sif.sh [IMAGE [FILE.sif]]
#
# IMAGE   an OCI archive, by default cosmicai-cuda.oci.tar or else cosmicai-cpu.oci.tar of this folder; or
#         docker://REGISTRY/NAME@sha256:..., by its digest
#
# The file remembers the digest of the image's manifest; what runs in it finds it in COSMICAI_IMAGE_DIGEST.
set -euo pipefail
fail() { echo "sif.sh: $*" >&2 && exit 2; }
case ${1-} in -h | --help) sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0" && exit ;; esac
image=${1-} sif=${2:-cosmicai.sif}
for made in cosmicai-cuda.oci.tar cosmicai-cpu.oci.tar; do [ ! -f $made ] || : "${image:=$made}"; done
[ -n "$image" ] || fail "there is no cosmicai-*.oci.tar here; build one with containers/build.sh, or name an image"
command -v apptainer >/dev/null || fail "there is no apptainer here; install it, or on a cluster load its module"

case $image in
  docker://*)
    [[ $image =~ @(sha256:[0-9a-f]{64})$ ]] ||
      fail "$image names no digest; end it with @sha256:..., as containers/build.sh printed it"
    bootstrap=docker from=${image#docker://} digest=${BASH_REMATCH[1]}
    ;;
  *)
    [ -f "$image" ] || fail "$image is not there; build it with containers/build.sh"
    digest=$(tar --extract --to-stdout --file "$image" index.json 2>/dev/null | grep -o 'sha256:[0-9a-f]*') ||
      fail "$image is no OCI archive; build it anew with containers/build.sh"
    bootstrap=oci-archive from=$image
    tar --extract --to-stdout --file "$image" "blobs/${digest/://}" 2>/dev/null | sha256sum |
      grep -q "^${digest#sha256:}" || fail "$image is damaged: it has not the manifest $digest; build it anew"
    ;;
esac

definition=$(mktemp --suffix=.def)
trap 'rm -f "$definition" "$sif".partial-$$' EXIT
cat >"$definition" <<END
Bootstrap: $bootstrap
From: $from

%labels
  cosmicai.image-digest $digest

%environment
  export COSMICAI_IMAGE_DIGEST=$digest

%runscript
  exec /opt/cosmicai/bin/entrypoint "\$@"

%test
  exec cosmicai selftest
END
apptainer build --notest "$sif.partial-$$" "$definition" >&2 ||
  fail "apptainer could not build it, see above; if space is short, point TMPDIR to a larger folder"
mv "$sif.partial-$$" "$sif"
echo "$digest"
