#!/bin/sh
# Builds the C tests and the C example as C99 and as C++, and runs them against libvdsmstore.so, under valgrind where it
# is installed; checks what the library exports. Closing line: "N passed, N failed".
#
#   run.sh FOLDER_OF_THE_LIBRARY
set -u

library=$(cd "$1" && pwd) || exit 2
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0
failed=0

# check TITLE COMMAND...: one test is one command.
check() {
    title=$1
    shift
    if "$@" >"$work/output" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $title"
    else
        failed=$((failed + 1))
        echo "FAILED  $title"
        sed 's/^/        /' "$work/output"
    fi
}

build() { # LANGUAGE SOURCE OUTPUT
    case $1 in
    c99) set -- "$2" "$3" "${CC:-cc}" -std=c99 -D_POSIX_C_SOURCE=200809L -x c ;;
    c++) set -- "$2" "$3" "${CXX:-c++}" -std=c++11 -x c++ ;;
    esac
    source=$1 output=$2
    shift 2
    "$@" -Wall -Wextra -pedantic -Werror -g -I"$root/include" -I"$here" "$source" -o "$output" \
        -L"$library" -lvdsmstore -Wl,-rpath,"$library"
}

run() { # PROGRAM FOLDER
    mkdir -p "$2"
    if command -v valgrind >/dev/null; then
        valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite,indirect \
            --child-silent-after-fork=yes "$1" "$2"
    else
        "$1" "$2"
    fi
}

exports_only_ours() {
    symbols=$(readelf -W --dyn-syms "$library/libvdsmstore.so" | awk '$7 != "UND" && $5 != "LOCAL" { print $8 }' |
        grep -v '^Name$' | grep -v '^$' | grep -v '^VDSMSTORE_[0-9.]*$')
    [ -n "$symbols" ] || return 1
    ! echo "$symbols" | grep -v '^vdsmstore_[a-z_]*@@VDSMSTORE_[0-9.]*$'
}

exports_what_the_header_declares() {
    readelf -W --dyn-syms "$library/libvdsmstore.so" | sed -n 's/.* \(vdsmstore_[a-z_]*\)@@.*/\1/p' |
        sort >"$work/exported"
    grep -o '\bvdsmstore_[a-z_]*(' "$root/include/vdsmstore.h" | grep -v '`' | tr -d '(' | sort -u >"$work/declared"
    grep -vx 'vdsmstore_version' "$work/declared" >/dev/null && diff "$work/declared" "$work/exported"
}

has_a_soname() {
    readelf -d "$library/libvdsmstore.so" | grep 'Library soname: \[libvdsmstore.so.0\]'
}

pkg_config_file() {
    version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
    sed -e "s|@PREFIX@|/usr|" -e "s|@LIBDIR@|$library|" -e "s|@INCLUDEDIR@|$root/include|" \
        -e "s|@VERSION@|$version|" "$root/packaging/vdsmstore.pc.in" >"$work/vdsmstore.pc"
    ! grep '@[A-Z]*@' "$work/vdsmstore.pc" || return 1
    command -v pkg-config >/dev/null || return 0
    # shellcheck disable=SC2046
    ${CC:-cc} -std=c99 -D_POSIX_C_SOURCE=200809L "$here/nulls.c" -I"$here" -o "$work/pc" \
        $(PKG_CONFIG_PATH=$work pkg-config --cflags --libs vdsmstore)
}

check "exports only vdsmstore_*, versioned" exports_only_ours
check "exports what the header declares" exports_what_the_header_declares
check "has a SONAME" has_a_soname
check "pkg-config" pkg_config_file
for language in c99 c++; do
    for source in "$here"/*.c "$root"/examples/c/*.c; do
        name=$(basename "$source" .c)-$language
        check "build $name" build "$language" "$source" "$work/$name"
        check "run $name" run "$work/$name" "$work/$name.folder"
    done
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
