/* SPDX-License-Identifier: GPL-2.0 */
/*
 * leakdrv leaks on demand: each path by which the kernel allocates and frees has a function that
 * leaks exactly N objects and one that frees all of them again.
 */
#ifndef LEAKDRV_H
#define LEAKDRV_H

#include <linux/compiler.h>
#include <linux/errno.h>
#include <linux/types.h>

struct dentry;

/* A path: its name as written to debugfs, and what is done N times. */
struct leak_path {
	const char *name;
	int (*leak)(unsigned int n);
	int (*balanced)(unsigned int n);
};

/* Objects that a balanced function holds at a time. */
#define HELD 64

/*
 * Makes NAME_leak and NAME_balanced of NAME_get, which returns an object or NULL, and NAME_put,
 * which frees one. Both are functions of their own, so that each has its own call sites.
 */
#define PATH(name)							\
static noinline int name##_leak(unsigned int n)			\
{									\
	while (n--) {							\
		void *object = name##_get();				\
									\
		if (!object)						\
			return -ENOMEM;					\
		OPTIMIZER_HIDE_VAR(object);				\
	}								\
	return 0;							\
}									\
static noinline int name##_balanced(unsigned int n)				\
{									\
	void *held[HELD];						\
	unsigned int i, some;						\
									\
	for (; n; n -= some) {						\
		some = n < HELD ? n : HELD;				\
		for (i = 0; i < some; i++) {				\
			held[i] = name##_get();				\
			if (!held[i])					\
				return -ENOMEM;				\
		}							\
		for (i = 0; i < some; i++)				\
			name##_put(held[i]);				\
	}								\
	return 0;							\
}

#define ENTRY(name) { #name, name##_leak, name##_balanced }

extern const struct leak_path slab_paths[], page_paths[], context_paths[], pattern_paths[];
extern const struct leak_path holder_paths[];

int slab_init(void);
void slab_exit(bool leaked);
int page_init(void);
void page_exit(void);
int context_init(void);
void context_exit(void);
void pattern_exit(void);
int holder_init(void);
void holder_exit(void);
void handles_init(struct dentry *directory);

#endif
