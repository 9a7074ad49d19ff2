/* Every function with NULL in every place: an error, never a crash, and no out-parameter is written. */
#include "check.h"

#define ID "00000000-0000-4000-8000-000000000000"
#define BAD_UTF8 "\xff\xfe"

/* Not a constant expression: compilers refuse to divide by it before the program runs. */
static double zero(void) { return checks_passed < 0 ? 1.0 : 0.0; }

static void *const UNTOUCHED = (void *)&checks_passed;

/* The out-parameter is as before. */
#define FAILS_UNTOUCHED(kind, place, call)      \
    do {                                        \
        place = (char *)UNTOUCHED;              \
        CHECK_FAILS(kind, call);                \
        CHECK(place == (char *)UNTOUCHED);      \
    } while (0)

int main(void) {
    vdsmstore_t *store = NULL;
    vdsmstore_t *none = NULL;
    vdsmstore_image_t *image = NULL;
    vdsmstore_difference_t *difference = NULL;
    char *text = NULL;
    uint64_t size = 42;
    char byte = 0;

    vdsmstore_free(NULL);
    vdsmstore_image_free(NULL);
    vdsmstore_difference_free(NULL);
    vdsmstore_string_free(NULL);
    vdsmstore_error_free(NULL);
    CHECK(vdsmstore_error_code(NULL) == 0);
    CHECK(vdsmstore_error_kind(NULL) == NULL);
    CHECK(vdsmstore_error_message(NULL) == NULL);
    CHECK(vdsmstore_error_details(NULL) == NULL);

    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_open(NULL, NULL, &error));
    CHECK(vdsmstore_open(NULL, NULL, NULL) == -VDSMSTORE_ERROR_INVALID_PARAMETER);
    none = (vdsmstore_t *)UNTOUCHED;
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_open("{\"x\": 1}", &none, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_open("[]", &none, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_open(BAD_UTF8, &none, &error));
    CHECK(none == (vdsmstore_t *)UNTOUCHED);
    none = NULL;
    CHECK_OK(vdsmstore_open("{\"hostId\": \"test\", \"threads\": 1}", &store, &error));

    /* No store, though everything else is there. */
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_close(none, &error));
    CHECK_FAILS(INVALID_PARAMETER,
                vdsmstore_connect_storage_repository(none, "a", "localfs-1.0", NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_disconnect_storage_repository(none, "a", NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_format_storage_repository(none, "localfs-1.0", NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_list_storage_repositories(none, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_get_storage_repository_info(none, "a", NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_create_virtual_disk(none, "a", 512, NULL, NULL, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_create_snapshot(none, "a", ID, NULL, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_copy_image(none, "a", ID, NULL, NULL, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_import_image(none, "a", "/x", "raw", NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_remove_image(none, "a", ID, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_get_image_status(none, "a", ID, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_get_image_info(none, "a", ID, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_list_images(none, "a", NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_set_image_user_data(none, "a", ID, "1", NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_prepare_image(none, "a", ID, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_teardown_image(none, "a", ID, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_wait_image(none, "a", ID, 0, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_wait_task(none, "t", 0, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_list_tasks(none, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_check_storage_repository(none, "a", NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_fix_storage_repository(none, "a", "{}", NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_stop_image_task(none, "a", ID, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_stop_task(none, "t", NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_set_image_strategy(none, "a", ID, "space", NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_resize_virtual_disk(none, "a", ID, 512, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_export_image(none, "a", ID, "/x", "raw", NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_measure_image(none, "a", ID, NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_diff_images(none, "a", ID, NULL, NULL, &difference, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_open_image(none, "a", ID, NULL, NULL, &image, &error));
    CHECK(image == NULL);

    /* A store, and a NULL for each other pointer in turn. */
    CHECK_FAILS(INVALID_PARAMETER,
                vdsmstore_connect_storage_repository(store, NULL, "localfs-1.0", NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_connect_storage_repository(store, "a", NULL, NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER,
                vdsmstore_connect_storage_repository(store, "a", "localfs-1.0", NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_disconnect_storage_repository(store, NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_format_storage_repository(store, NULL, NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_list_storage_repositories(store, NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_get_storage_repository_info(store, NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_get_storage_repository_info(store, "a", NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_create_virtual_disk(store, NULL, 512, NULL, NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_create_virtual_disk(store, "a", 512, NULL, NULL, NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_create_snapshot(store, NULL, ID, NULL, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_create_snapshot(store, "a", NULL, NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_create_snapshot(store, "a", ID, NULL, NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_copy_image(store, NULL, ID, NULL, NULL, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_copy_image(store, "a", NULL, NULL, NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_copy_image(store, "a", ID, NULL, NULL, NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_import_image(store, NULL, "/x", "raw", NULL, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_import_image(store, "a", NULL, "raw", NULL, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_import_image(store, "a", "/x", NULL, NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_import_image(store, "a", "/x", "raw", NULL, NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_remove_image(store, NULL, ID, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_remove_image(store, "a", NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_get_image_status(store, NULL, ID, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_get_image_status(store, "a", NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_get_image_status(store, "a", ID, NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_get_image_info(store, NULL, ID, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_get_image_info(store, "a", NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_get_image_info(store, "a", ID, NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_list_images(store, NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_list_images(store, "a", NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_set_image_user_data(store, NULL, ID, "1", NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_set_image_user_data(store, "a", NULL, "1", NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_set_image_user_data(store, "a", ID, NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_prepare_image(store, NULL, ID, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_prepare_image(store, "a", NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_prepare_image(store, "a", ID, NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_teardown_image(store, NULL, ID, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_teardown_image(store, "a", NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_wait_image(store, NULL, ID, 0, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_wait_image(store, "a", NULL, 0, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_wait_image(store, "a", ID, 0, NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_wait_task(store, NULL, 0, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_list_tasks(store, NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_open_image(store, NULL, ID, NULL, NULL, &image, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_open_image(store, "a", NULL, NULL, NULL, &image, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_open_image(store, "a", ID, NULL, NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_open_image(store, "a", ID, "x", NULL, &image, &error));
    CHECK(image == NULL);

    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_check_storage_repository(store, NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_check_storage_repository(store, "a", NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_fix_storage_repository(store, NULL, "{}", NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_fix_storage_repository(store, "a", NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_fix_storage_repository(store, "a", "{}", NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_stop_image_task(store, NULL, ID, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_stop_image_task(store, "a", NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_stop_task(store, NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_set_image_strategy(store, NULL, ID, "space", NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_set_image_strategy(store, "a", NULL, "space", NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_set_image_strategy(store, "a", ID, NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_resize_virtual_disk(store, NULL, ID, 512, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_resize_virtual_disk(store, "a", NULL, 512, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_export_image(store, NULL, ID, "/x", "raw", NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_export_image(store, "a", NULL, "/x", "raw", NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_export_image(store, "a", ID, NULL, "raw", NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_export_image(store, "a", ID, "/x", NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_export_image(store, "a", ID, "/x", "raw", NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_measure_image(store, NULL, ID, NULL, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_measure_image(store, "a", NULL, NULL, NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_measure_image(store, "a", ID, NULL, NULL, NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_diff_images(store, NULL, ID, NULL, NULL, &difference, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_diff_images(store, "a", NULL, NULL, NULL, &difference, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_diff_images(store, "a", ID, NULL, NULL, NULL, &error));
    CHECK(difference == NULL);

    /* No difference. */
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_difference_next(NULL, 1, &text, &error));

    /* No image. */
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_image_read(NULL, 0, &byte, 1, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_image_write(NULL, 0, &byte, 1, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_image_write_zeroes(NULL, 0, 1, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_image_discard(NULL, 0, 1, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_image_flush(NULL, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_image_size(NULL, &size, &error));
    CHECK(size == 42);
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_image_extents(NULL, 0, 1, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_image_close(NULL, &error));

    /* What is not UTF-8, and options that are none. */
    CHECK_FAILS(INVALID_PARAMETER,
                vdsmstore_connect_storage_repository(store, BAD_UTF8, "localfs-1.0", NULL, NULL, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_list_images(store, BAD_UTF8, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_list_images(store, "a", BAD_UTF8, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_list_tasks(store, "{\"x\": 1}", &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_list_tasks(store, "{", &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text, vdsmstore_wait_image(store, "a", ID, 0.0 / zero(), NULL, &text, &error));

    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_check_storage_repository(store, "a", "{\"x\": 1}", &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_fix_storage_repository(store, "a", BAD_UTF8, NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_fix_storage_repository(store, "a", "{", NULL, &text, &error));
    FAILS_UNTOUCHED(INVALID_PARAMETER, text,
                    vdsmstore_fix_storage_repository(store, "a", "[]", NULL, &text, &error));
    FAILS_UNTOUCHED(FIX_REFUSED, text, vdsmstore_fix_storage_repository(store, "a", "{}", NULL, &text, &error));
    CHECK_FAILS(INVALID_PARAMETER, vdsmstore_set_image_strategy(store, "a", ID, "fast", NULL, &error));

    /* A verb that is not built. */
    CHECK_FAILS(UNSUPPORTED_OPERATION, vdsmstore_extend_image(store, "a", ID, 512, NULL, NULL, &error));

    CHECK_OK(vdsmstore_close(store, &error));
    CHECK_OK(vdsmstore_close(store, &error));
    FAILS_UNTOUCHED(CLOSED, text, vdsmstore_list_images(store, "a", NULL, &text, &error));
    vdsmstore_free(store);
    return checks_end("nulls");
}
