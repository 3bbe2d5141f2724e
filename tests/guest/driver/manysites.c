// SPDX-License-Identifier: GPL-2.0
/*
 * manysites allocates once from each of 100,000 places, which is more than any table has room for, and frees all of that
 * when it is removed.
 */
#include <linux/module.h>
#include <linux/slab.h>

#define BYTES 32

struct kept {
	struct kept *next;
	char rest[BYTES - sizeof(void *)];
};

static struct kept *all;

static __always_inline void keep(struct kept *object)
{
	if (object) {
		object->next = all;
		all = object;
	}
}

/* A call of its own for each, which the compiler may not put together. */
#define ONE do { keep(kmalloc(sizeof(struct kept), GFP_KERNEL)); barrier(); } while (0);
#define TEN(x) x x x x x x x x x x
#define THOUSAND(x) TEN(TEN(TEN(x)))

#define PLACES(number) static noinline __attribute__((no_icf)) void places_##number(void) { THOUSAND(ONE) }
#define TEN_OF(what, tens)						\
	what(tens##0) what(tens##1) what(tens##2) what(tens##3) what(tens##4)	\
	what(tens##5) what(tens##6) what(tens##7) what(tens##8) what(tens##9)
#define HUNDRED_OF(what)						\
	TEN_OF(what, 0) TEN_OF(what, 1) TEN_OF(what, 2) TEN_OF(what, 3) TEN_OF(what, 4)	\
	TEN_OF(what, 5) TEN_OF(what, 6) TEN_OF(what, 7) TEN_OF(what, 8) TEN_OF(what, 9)

HUNDRED_OF(PLACES)

#define CALL(number) places_##number();

static int __init manysites_init(void)
{
	HUNDRED_OF(CALL)
	return 0;
}

static void __exit manysites_exit(void)
{
	while (all) {
		struct kept *object = all;

		all = object->next;
		kfree(object);
	}
}

module_init(manysites_init);
module_exit(manysites_exit);
MODULE_DESCRIPTION("allocates from 100,000 places");
MODULE_LICENSE("GPL");
