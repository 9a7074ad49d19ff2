/*
 * A disk is made in a new repository, written to, snapshotted, and the snapshot copied to a second repository.
 *
 *   cc -std=c99 snapshot_and_copy.c -o snapshot_and_copy $(pkg-config --cflags --libs vdsmstore)
 *   mkdir /tmp/example && ./snapshot_and_copy /tmp/example
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <vdsmstore.h>

#define GIB (INT64_C(1) << 30)

/* Prints what failed and ends the program; nothing is lost, for what was begun is resumed by whoever comes next. */
static void fail(const char *what, vdsmstore_error_t *error) {
    fprintf(stderr, "%s: %s (%s, code %d, details %s)\n", what, vdsmstore_error_message(error),
            vdsmstore_error_kind(error), vdsmstore_error_code(error), vdsmstore_error_details(error));
    vdsmstore_error_free(error);
    exit(1);
}

/* Makes a repository in a new folder and connects it under a name. */
static void repository(vdsmstore_t *store, const char *folder, const char *name) {
    vdsmstore_error_t *error = NULL;
    char path[1024], parameters[1100];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(parameters, sizeof parameters, "{\"path\": \"%s\"}", path);
    if (mkdir(path, 0700) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(1);
    }
    if (vdsmstore_format_storage_repository(store, "localfs-1.0", parameters, NULL, &error) != 0)
        fail("format", error);
    if (vdsmstore_connect_storage_repository(store, name, "localfs-1.0", parameters, NULL, &error) != 0)
        fail("connect", error);
}

/* Waits until the work on an image is done, and prints its status. */
static void wait_for(vdsmstore_t *store, const char *repo, const char *image) {
    vdsmstore_error_t *error = NULL;
    char *status = NULL;
    if (vdsmstore_wait_image(store, repo, image, -1, NULL, &status, &error) != 0)
        fail("wait", error);
    printf("%s in %s: %s\n", image, repo, status);
    vdsmstore_string_free(status);
}

int main(int argc, char **argv) {
    vdsmstore_error_t *error = NULL;
    vdsmstore_t *store = NULL;
    vdsmstore_image_t *image = NULL;
    char *disk = NULL, *snapshot = NULL, *copy = NULL;
    const char greeting[] = "hello from C";

    if (argc != 2) {
        fprintf(stderr, "usage: %s EMPTY_FOLDER\n", argv[0]);
        return 2;
    }
    if (vdsmstore_open("{\"hostId\": \"example\"}", &store, &error) != 0)
        fail("open", error);
    repository(store, argv[1], "fast");
    repository(store, argv[1], "backup");

    if (vdsmstore_create_virtual_disk(store, "fast", GIB, NULL, "{\"name\": \"system\"}", NULL, &disk, &error) != 0)
        fail("create", error);
    wait_for(store, "fast", disk);

    if (vdsmstore_open_image(store, "fast", disk, "rw", NULL, &image, &error) != 0)
        fail("open image", error);
    if (vdsmstore_image_write(image, 4096, greeting, sizeof greeting, &error) != 0)
        fail("write", error);
    if (vdsmstore_image_close(image, &error) != 0) /* flushes */
        fail("close image", error);
    vdsmstore_image_free(image);

    if (vdsmstore_create_snapshot(store, "fast", disk, "{\"when\": \"first\"}", NULL, &snapshot, &error) != 0)
        fail("snapshot", error);
    wait_for(store, "fast", snapshot);

    /* A snapshot keeps its id wherever it is copied to. */
    if (vdsmstore_copy_image(store, "backup", snapshot, NULL, NULL, NULL, &copy, &error) != 0)
        fail("copy", error);
    wait_for(store, "backup", copy);
    if (strcmp(copy, snapshot) != 0) {
        fprintf(stderr, "the copy has another id\n");
        return 1;
    }

    /* Errors have a code for programs and a message for people. */
    if (vdsmstore_remove_image(store, "backup", disk, NULL, &error) == -VDSMSTORE_ERROR_IMAGE_NOT_FOUND)
        printf("as expected: %s\n", vdsmstore_error_message(error));
    vdsmstore_error_free(error);
    error = NULL;

    vdsmstore_string_free(disk);
    vdsmstore_string_free(snapshot);
    vdsmstore_string_free(copy);
    if (vdsmstore_close(store, &error) != 0)
        fail("close", error);
    vdsmstore_free(store);
    return 0;
}
