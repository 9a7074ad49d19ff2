#!/bin/sh
# Links the static library into libvdsmstore.so.VERSION with a SONAME and versioned symbols, which cargo cannot: a
# version script for a cdylib is ignored, and no SONAME is set.
#
#   link.sh STATIC_LIBRARY OUTPUT_FOLDER
set -eu

static=$1
out=$2
here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' "$here/../../Cargo.toml")
soname=libvdsmstore.so.${version%%.*}

mkdir -p "$out"
${CC:-cc} -shared -o "$out/libvdsmstore.so.$version" \
    -Wl,--whole-archive "$static" -Wl,--no-whole-archive \
    -Wl,--version-script="$here/vdsmstore.map" -Wl,-soname,"$soname" \
    -Wl,--gc-sections -Wl,-z,defs -Wl,-z,now -Wl,-z,relro -Wl,-z,noexecstack -Wl,-z,nodelete \
    -lgcc_s -lm -lpthread -ldl -lc
ln -sf "libvdsmstore.so.$version" "$out/$soname"
ln -sf "$soname" "$out/libvdsmstore.so"
