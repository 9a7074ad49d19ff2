/* What the C tests share: checks that count, and shorthands. Compiles as C99 and as C++. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vdsmstore.h>

static int checks_passed, checks_failed;

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (condition) {                                                                  \
            checks_passed++;                                                              \
        } else {                                                                          \
            checks_failed++;                                                              \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);       \
        }                                                                                 \
    } while (0)

/* The call succeeds; the error it may give is printed. */
#define CHECK_OK(call)                                                                    \
    do {                                                                                  \
        vdsmstore_error_t *error = NULL;                                                  \
        int code = (call);                                                                \
        if (code != 0)                                                                    \
            fprintf(stderr, "%s: %s\n", vdsmstore_error_kind(error), vdsmstore_error_message(error)); \
        CHECK(code == 0);                                                                 \
        CHECK(error == NULL);                                                             \
        vdsmstore_error_free(error);                                                      \
    } while (0)

/* The call fails with the kind. */
#define CHECK_FAILS(kind, call)                                                           \
    do {                                                                                  \
        vdsmstore_error_t *error = NULL;                                                  \
        int code = (call);                                                                \
        CHECK(code == -VDSMSTORE_ERROR_##kind);                                           \
        CHECK(error != NULL && vdsmstore_error_code(error) == -code);                     \
        if (code != -VDSMSTORE_ERROR_##kind)                                              \
            fprintf(stderr, "code %d, not that of %s: %s\n", code, #kind,                 \
                    error == NULL ? "no error" : vdsmstore_error_message(error));         \
        CHECK(error == NULL || vdsmstore_error_kind(error) != NULL);                      \
        CHECK(error == NULL || vdsmstore_error_message(error) != NULL);                   \
        CHECK(error == NULL || vdsmstore_error_details(error)[0] == '{');                 \
        vdsmstore_error_free(error);                                                      \
    } while (0)

/* The result of the program: 0 if every check passed. Prints the count. */
static int checks_end(const char *name) {
    printf("%s: %d checks passed, %d failed\n", name, checks_passed, checks_failed);
    return checks_failed == 0 ? 0 : 1;
}

#endif
