/* Checks and fixes, stops, differences, measure and export through the C interface. Argument: an empty folder. */
#include "check.h"

#include <sys/stat.h>
#include <unistd.h>

#define MIB (1024 * 1024)

static int contains(const char *text, const char *part) {
    return text != NULL && strstr(text, part) != NULL;
}

/* The only element of a JSON array, in the array's own memory. */
static char *only(char *array) {
    size_t length = array == NULL ? 0 : strlen(array);
    CHECK(length > 4 && array[0] == '[' && array[1] == '{' && array[length - 1] == ']');
    if (length < 2)
        return array;
    array[length - 1] = '\0';
    return array + 1;
}

static void connect_new(vdsmstore_t *store, const char *folder, const char *name) {
    char path[4096], parameters[4200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(parameters, sizeof parameters, "{\"path\": \"%s\"}", path);
    CHECK(mkdir(path, 0700) == 0);
    CHECK_OK(vdsmstore_format_storage_repository(store, "localfs-1.0", parameters, NULL, &error));
    CHECK_OK(vdsmstore_connect_storage_repository(store, name, "localfs-1.0", parameters, NULL, &error));
}

static void expect_status(vdsmstore_t *store, const char *repository, const char *image, const char *part) {
    char *text = NULL;
    CHECK_OK(vdsmstore_get_image_status(store, repository, image, NULL, &text, &error));
    if (!contains(text, part))
        fprintf(stderr, "%s is not in %s\n", part, text == NULL ? "NULL" : text);
    CHECK(contains(text, part));
    vdsmstore_string_free(text);
}

static void expect_no_fixes(vdsmstore_t *store, const char *repository) {
    char *text = NULL;
    CHECK_OK(vdsmstore_check_storage_repository(store, repository, "{\"exactCost\": true}", &text, &error));
    CHECK(text != NULL && strcmp(text, "[]") == 0);
    vdsmstore_string_free(text);
}

/* Work that is recorded is found by a check and completed by a fix; a changed fix is refused. */
static char *check_and_fix(vdsmstore_t *store) {
    char *disk = NULL, *fixes = NULL, *fix, *task = NULL, *type;
    CHECK_OK(vdsmstore_create_virtual_disk(store, "a", 2 * MIB, NULL, NULL, "{\"AutoFix\": false}", &disk, &error));
    CHECK_OK(vdsmstore_check_storage_repository(store, "a", NULL, &fixes, &error));
    CHECK(contains(fixes, "\"type\":\"mend\"") && contains(fixes, disk));
    fix = only(fixes);
    CHECK_FAILS(FIX_REFUSED, vdsmstore_fix_storage_repository(store, "b", fix, NULL, &task, &error));
    type = strstr(fix, "\"mend\"");
    CHECK(type != NULL);
    type[1] = 'x';
    CHECK_FAILS(FIX_REFUSED, vdsmstore_fix_storage_repository(store, "a", fix, NULL, &task, &error));
    type[1] = 'm';
    CHECK(task == NULL);
    expect_status(store, "a", disk, "\"broken\"");
    CHECK_OK(vdsmstore_fix_storage_repository(store, "a", fix, "{\"taskId\": \"mine\"}", &task, &error));
    CHECK(task != NULL && strcmp(task, "mine") == 0);
    CHECK_OK(vdsmstore_wait_task(store, task, 30, NULL, &error));
    CHECK_OK(vdsmstore_stop_task(store, task, NULL, &error)); /* has ended: does nothing */
    vdsmstore_string_free(task);
    expect_status(store, "a", disk, "\"optimized\"");
    expect_no_fixes(store, "a");
    task = NULL;
    CHECK_OK(vdsmstore_fix_storage_repository(store, "a", fix, NULL, &task, &error)); /* unnecessary */
    CHECK_OK(vdsmstore_wait_task(store, task, 30, NULL, &error));
    vdsmstore_string_free(task);
    vdsmstore_string_free(fixes);
    return disk;
}

static void write_data(vdsmstore_t *store, const char *disk, int64_t offset, size_t length) {
    vdsmstore_image_t *image = NULL;
    char *data = (char *)malloc(length);
    memset(data, 'x', length);
    CHECK_OK(vdsmstore_open_image(store, "a", disk, "rw", NULL, &image, &error));
    CHECK_OK(vdsmstore_image_write(image, offset, data, length, &error));
    CHECK_OK(vdsmstore_image_close(image, &error));
    vdsmstore_image_free(image);
    free(data);
}

/* A copy that is limited is stopped, and goes on by a fix. */
static void stop_and_resume(vdsmstore_t *store, const char *disk) {
    char *copy = NULL, *fixes = NULL, *task = NULL;
    CHECK_OK(vdsmstore_copy_image(store, "b", disk, NULL, NULL, "{\"bandwidth\": 100000, \"taskId\": \"slow\"}", &copy,
                                  &error));
    CHECK_FAILS(TIMEOUT, vdsmstore_wait_task(store, "slow", 0.2, NULL, &error));
    CHECK_OK(vdsmstore_stop_image_task(store, "b", copy, NULL, &error));
    CHECK_FAILS(STOPPED, vdsmstore_wait_task(store, "slow", 0, NULL, &error));
    CHECK_OK(vdsmstore_stop_image_task(store, "b", copy, NULL, &error));
    CHECK_FAILS(TASK_NOT_FOUND, vdsmstore_stop_task(store, "unknown", NULL, &error));
    expect_status(store, "b", copy, "was stopped");
    CHECK_OK(vdsmstore_check_storage_repository(store, "b", NULL, &fixes, &error));
    CHECK_OK(vdsmstore_fix_storage_repository(store, "b", only(fixes), "{\"bandwidth\": 1e12}", &task, &error));
    CHECK_OK(vdsmstore_wait_task(store, task, 60, NULL, &error));
    expect_status(store, "b", copy, "\"optimized\"");
    expect_no_fixes(store, "b");
    vdsmstore_string_free(task);
    vdsmstore_string_free(fixes);
    vdsmstore_string_free(copy);
}

static void compare(vdsmstore_t *store, const char *disk) {
    vdsmstore_difference_t *difference = NULL;
    char *text = NULL;
    CHECK_FAILS(IMAGE_NOT_FOUND, vdsmstore_diff_images(store, "a", disk, "00000000-0000-4000-8000-000000000000", NULL,
                                                       &difference, &error));
    CHECK(difference == NULL);
    CHECK_OK(vdsmstore_diff_images(store, "a", disk, NULL, NULL, &difference, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_difference_next(difference, 0, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_difference_next(difference, 1, NULL, &error));
    CHECK_OK(vdsmstore_difference_next(difference, 1, &text, &error));
    CHECK(text != NULL && strcmp(text, "[{\"offset\":0,\"length\":1048576,\"kind\":\"data\"}]") == 0);
    vdsmstore_string_free(text);
    CHECK_OK(vdsmstore_difference_next(difference, (size_t)-1, &text, &error));
    CHECK(text != NULL && strcmp(text, "[]") == 0);
    vdsmstore_string_free(text);
    CHECK_FAILS(IMAGE_IN_USE, vdsmstore_resize_virtual_disk(store, "a", disk, 4 * MIB, NULL, &error));
    vdsmstore_difference_free(difference);
}

static void change(vdsmstore_t *store, const char *disk) {
    char *text = NULL;
    CHECK_OK(vdsmstore_resize_virtual_disk(store, "a", disk, 4 * MIB, NULL, &error));
    CHECK_FAILS(INVALID_SIZE, vdsmstore_resize_virtual_disk(store, "a", disk, MIB, NULL, &error));
    CHECK_OK(vdsmstore_set_image_strategy(store, "a", disk, "performance", NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_set_image_strategy(store, "a", disk, "fast", NULL, &error));
    CHECK_OK(vdsmstore_get_image_info(store, "a", disk, NULL, &text, &error));
    CHECK(contains(text, "\"size\":4194304") && contains(text, "\"strategy\":\"performance\""));
    vdsmstore_string_free(text);
}

static void transfer(vdsmstore_t *store, const char *folder, const char *disk) {
    char path[4096], *text = NULL, *task = NULL;
    struct stat found;
    snprintf(path, sizeof path, "%s/file", folder);
    CHECK_OK(vdsmstore_measure_image(store, "a", disk, NULL, NULL, &text, &error));
    CHECK(text != NULL && strcmp(text, "{\"required\":1048576,\"fullyAllocated\":4194304,\"read\":1048576}") == 0);
    vdsmstore_string_free(text);
    text = NULL;
    CHECK_FAILS(INVALID_PARAMETER,
                vdsmstore_measure_image(store, "a", disk, NULL, "{\"format\": \"vmdk\"}", &text, &error));
    CHECK(text == NULL);
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_export_image(store, "a", disk, "file", "raw", NULL, &task, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_export_image(store, "a", disk, path, "raw",
                                                          "{\"compress\": \"zstd\"}", &task, &error));
    CHECK(task == NULL);
    CHECK_OK(vdsmstore_export_image(store, "a", disk, path, "qcow2", "{\"compress\": \"zstd\"}", &task, &error));
    CHECK_OK(vdsmstore_wait_task(store, task, 30, NULL, &error));
    CHECK(stat(path, &found) == 0 && found.st_size < 4 * MIB);
    vdsmstore_string_free(task);
    task = NULL;
    CHECK(unlink(path) == 0);
    CHECK_OK(vdsmstore_export_image(store, "a", disk, path, "raw", NULL, &task, &error));
    CHECK_OK(vdsmstore_wait_task(store, task, 30, NULL, &error));
    CHECK(stat(path, &found) == 0 && found.st_size == 4 * MIB);
    vdsmstore_string_free(task);
    task = NULL;
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_export_image(store, "a", disk, path, "raw", NULL, &task, &error));
    CHECK(task == NULL);
}

int main(int argc, char **argv) {
    vdsmstore_t *store = NULL;
    vdsmstore_difference_t *difference = NULL;
    char *disk, *text = NULL;

    if (argc != 2) {
        fprintf(stderr, "usage: transfer FOLDER\n");
        return 2;
    }
    CHECK_OK(vdsmstore_open(NULL, &store, &error));
    connect_new(store, argv[1], "a");
    connect_new(store, argv[1], "b");
    disk = check_and_fix(store);
    write_data(store, disk, 0, MIB);
    stop_and_resume(store, disk);
    compare(store, disk);
    change(store, disk);
    transfer(store, argv[1], disk);

    CHECK_OK(vdsmstore_diff_images(store, "a", disk, disk, NULL, &difference, &error));
    CHECK_OK(vdsmstore_close(store, &error));
    CHECK_FAILS(CLOSED, vdsmstore_difference_next(difference, 1, &text, &error));
    CHECK(text == NULL);
    vdsmstore_free(store);
    vdsmstore_difference_free(difference); /* after its store */
    vdsmstore_string_free(disk);
    return checks_end("transfer");
}
