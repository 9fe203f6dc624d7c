#!/usr/bin/env bash
# Builds the image of this commit, cosmicai-VARIANT.oci.tar, and prints its manifest digest.
#
#   containers/build.sh [--variant cpu|cuda] [--base IMAGE] [--weights FILE]... [--out FOLDER]
#
# --variant   cuda (default), with torch for GPUs, or cpu, which is much smaller
# --base      a Debian 12: an image by its digest, or a tar file of containers/base.sh. By default that in the
#             Containerfile or, where no registry can be reached, one that base.sh makes
# --weights   weights for the image to bring along, besides those of the demo
# --out       folder for the image; by default this one
#
# It takes docker, podman or buildah, whichever is there (or COSMICAI_BUILDER), and pip, which finds the wheels as it is
# configured to: for cpu it must find a torch for CPUs. The same commit gives the same digest, if base, weights and the
# remote repository that it names as its source are the same.
set -euo pipefail
fail() { echo "build.sh: $*" >&2 && exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
variant=cuda base='' weights=() out=$PWD
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0" && exit ;;
    --variant | --base | --weights | --out) [ $# -gt 1 ] || fail "$1 needs a value" ;;&
    --variant) variant=$2 ;;
    --base) base=$2 ;;
    --weights) weights+=("$(realpath -m "$2")") ;;
    --out) out=$(realpath -m "$2") ;;
    *) fail "no option $1; see --help" ;;
  esac
  shift 2
done
[[ $variant =~ ^(cpu|cuda)$ ]] || fail "--variant $variant is none; expected cpu or cuda"
declare -A named
for file in "${weights[@]}"; do
  [ -f "$file" ] || fail "--weights $file is no file"
  [[ $file = *.safetensors ]] || fail "--weights $file is no .safetensors; import it with \`cosmicai weights import\`"
  [ -z "${named[${file##*/}]-}" ] || fail "two --weights are named ${file##*/}; in the image they share a folder"
  named[${file##*/}]=yes
done

usable() { # BUILDER
  command -v "$1" && { [ "$1" != docker ] || { docker buildx version && docker info; }; } # not a mere client
} >/dev/null 2>&1
builder=''
for found in ${COSMICAI_BUILDER:-docker podman buildah}; do
  [ -n "$builder" ] || ! usable "$found" || builder=$found
done
[ -n "$builder" ] || fail "there is nothing to build an image with; install docker (with buildx), podman or buildah"
commit=$(git -C "$root" describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null) ||
  fail "$root is no git checkout, so nothing says of which commit the image would be"
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
"$python" -m pip --version >/dev/null 2>&1 || fail "there is no pip to fetch wheels with; run \`make install\` in $root"
SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct)
export SOURCE_DATE_EPOCH

archive=$out/cosmicai-$variant.oci.tar wheels=$root/build/wheels-$variant
mkdir -p "$wheels" "$out"
context=$(mktemp -d "$root/build/context-XXXXXX")
image=localhost/cosmicai:build-$$ made=''
clean() {
  rm -rf "$context" "$archive".partial-$$
  [ -z "$made" ] || "$builder" rmi "$image" >/dev/null 2>&1 || true
}
trap clean EXIT
declare -A needed=([cpu]=6 [cuda]=20) # GB: wheels, what they unpack to in the builder's storage twice, and the archive
for folder in "$context" "$out"; do
  free=$(($(df --output=avail --block-size=1M "$folder" | tail -n 1) / 1024))
  [ "$free" -ge "${needed[$variant]}" ] ||
    fail "$free GB are free in $folder and building the $variant image takes about ${needed[$variant]}; make room"
done

# For the image's Python, not for the one that fetches; pip itself sees to it that they fit together.
echo "build.sh: fetching wheels" >&2
machine=$(uname -m)
fetch=("$python" -m pip download -qq --disable-pip-version-check --dest "$wheels" --only-binary=:all:
  --python-version 3.11 --platform manylinux1_"$machine" --platform manylinux2010_"$machine"
  --platform manylinux2014_"$machine")
for glibc in {5..36}; do fetch+=(--platform "manylinux_2_${glibc}_$machine"); done
rm -f "$wheels"/torch-*.whl # of an earlier build, perhaps of the other variant
torch=$(grep -o 'torch==[0-9.]*' "$root/pyproject.toml")
"${fetch[@]}" --no-deps "$torch" || fail "pip found no torch; see above"
needs=$("$python" - "$wheels"/torch-*.whl <<'END'
import sys, zipfile
for wheel in sys.argv[1:]:
    names = zipfile.ZipFile(wheel)
    text = names.read(next(name for name in names.namelist() if name.endswith("/METADATA"))).decode()
    needs = [line.removeprefix("Requires-Dist: ") for line in text.splitlines() if line.startswith("Requires-Dist: ")]
    print(*(need for need in needs if need.startswith(("nvidia", "cuda", "triton"))), sep="\n")
END
)
case $variant:$needs in
  cpu:*[a-z]*) wrong="a torch with CUDA; let it find one for CPUs (PIP_FIND_LINKS), or build --variant cuda" ;;
  cuda:) wrong="a torch for CPUs alone (\`pip config list\`); let it find one with CUDA, or build --variant cpu" ;;
  *) wrong='' ;;
esac
[ -z "$wrong" ] || fail "pip found $wrong"
"${fetch[@]}" --require-hashes --requirement "$root/requirements.lock" \
  --requirement "$root/containers/requirements.lock" || fail "pip did not find all wheels; see above"
mapfile -t cuda <<<"$needs"
[ "$variant" = cpu ] || "${fetch[@]}" "${cuda[@]}" || fail "pip did not find what torch with CUDA needs; see above"

mkdir "$context"/{project,weights}
cp -al "$wheels" "$context/wheels"
[ ${#weights[@]} = 0 ] || cp "${weights[@]}" "$context/weights"
# What is tracked, as it is now: a stash that nobody keeps.
now=$(git -C "$root" -c user.name=build -c user.email=build stash create)
(cd "$root" && git archive "${now:-HEAD}" LICENSE README.md pyproject.toml requirements.lock requirements-dev.lock src \
  aws analysis containers) | tar --extract --directory="$context/project"
cp "$root/containers/Containerfile" "$context"
chmod -R u=rwX,go=rX "$context"/{project,weights} # whatever the umask is here

asked=$base
: "${base:=$(sed -n 's/^ARG BASE=//p' "$context/Containerfile")}"
if [ ! -f "$base" ]; then
  case $builder in
    docker) docker buildx imagetools inspect "$base" ;;
    *) "$builder" pull --quiet "$base" ;;
  esac >/dev/null 2>"$context/answer" || {
    [ -z "$asked" ] || fail "--base $base cannot be had: $(tail -n 1 "$context/answer")"
    echo "build.sh: $base cannot be had ($(tail -n 1 "$context/answer")), so a base is made by base.sh" >&2
    base=$context/made.tar
    "$root/containers/base.sh" "$base"
  }
fi
if [ -f "$base" ]; then
  [ "$base" = "$context/made.tar" ] || cp "$base" "$context/made.tar"
  # shellcheck disable=SC2016
  sed -i 's|^FROM ${BASE}\(.*\)|FROM scratch\1\nADD made.tar /|' "$context/Containerfile"
fi

echo "build.sh: building with $builder" >&2
arguments=(--file "$context/Containerfile" --build-arg VARIANT="$variant" --build-arg COMMIT="$commit"
  --build-arg VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")"
  --build-arg SOURCE="$(git -C "$root" config --get remote.origin.url | sed -nE '\#://|@#{s|//[^/]*@|//|;p}' || true)")
[ -f "$base" ] || arguments+=(--build-arg BASE="$base")
if [ "$builder" = docker ]; then
  docker buildx inspect cosmicai >/dev/null 2>&1 ||
    docker buildx create --name cosmicai --driver docker-container >&2
  docker buildx build --builder cosmicai --provenance=false --build-arg SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" \
    --output "type=oci,dest=$archive.partial-$$,compression=gzip,force-compression=true,rewrite-timestamp=true" \
    "${arguments[@]}" "$context" >&2
else
  "$builder" build --quiet --isolation chroot --timestamp "$SOURCE_DATE_EPOCH" --format oci --tag "$image" \
    "${arguments[@]}" "$context" >&2
  made=yes
  "$builder" push --quiet "$image" "oci-archive:$archive.partial-$$" >&2
fi
sync "$archive.partial-$$"
mv "$archive.partial-$$" "$archive"
echo "build.sh: $(basename "$archive")" >&2
tar --extract --to-stdout --file "$archive" index.json | grep -o 'sha256:[0-9a-f]*'
