// SPDX-License-Identifier: GPL-2.0
/*
 * Objects that something holds, each kind in another place: in data, per-CPU memory, on a sleeping thread's stack, in
 * vmalloc memory, in a page, in a scatterlist; every other one by a pointer into its middle. And structures that are
 * lost as a whole.
 */
#include <linux/completion.h>
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <linux/xarray.h>

#include "leakdrv.h"

/* Most objects of a kind: as many pointers as a page has. */
#define MOST 512
/* Those on a stack. */
#define FEW 64
/* A pointer into the middle of every other object. */
#define INTO 72

static void hold(void **place, void *object, unsigned int index)
{
	*place = object + (index & 1 ? INTO : 0);
}

static void release(void **place, unsigned int index)
{
	if (*place)
		kfree(*place - (index & 1 ? INTO : 0));
	*place = NULL;
}

static void *in_data[MOST];
static DEFINE_PER_CPU(void *[FEW], in_percpu);
static void **in_area, **in_page;
static struct scatterlist *in_list;
static unsigned int data_count, percpu_count, area_count, in_page_count, list_count;

/*
 * What is held is zeroed: old content of live memory would be references to what is lost, and no tool could tell.
 * Each function has its own call site; `place` is evaluated for each object.
 */
#define HOLD(name, size, count, most, place)				\
static noinline int name##_leak(unsigned int n)				\
{									\
	for (; n && count < (most); n--, count++) {			\
		void *object = kzalloc(size, GFP_KERNEL);		\
									\
		if (!object)						\
			return -ENOMEM;					\
		hold(place, object, count);				\
	}								\
	return 0;							\
}									\
static int name##_balanced(unsigned int n) { return -EOPNOTSUPP; }

HOLD(held_data, 600, data_count, MOST, &in_data[data_count])
HOLD(held_percpu, 610, percpu_count, FEW, per_cpu_ptr(&in_percpu[percpu_count], 0))
HOLD(held_area, 620, area_count, MOST, &in_area[area_count])
HOLD(held_page, 630, in_page_count, MOST, &in_page[in_page_count])

/* By page and offset only. */
static noinline int held_list_leak(unsigned int n)
{
	for (; n && list_count < FEW; n--, list_count++) {
		void *object = kzalloc(640, GFP_KERNEL);

		if (!object)
			return -ENOMEM;
		sg_set_buf(&in_list[list_count], object, 640);
	}
	return 0;
}
static int held_list_balanced(unsigned int n) { return -EOPNOTSUPP; }

/* On the stack of a thread that sleeps until the module goes. */
static struct task_struct *sleeper;
static struct completion slept;
static unsigned int stack_wanted;

static noinline void *stack_object(void)
{
	void *object = kzalloc(650, GFP_KERNEL);

	/* No tail call: this function is the call site. */
	OPTIMIZER_HIDE_VAR(object);
	return object;
}

static int sleep_with_objects(void *unused)
{
	void *held[FEW] = {};
	unsigned int i;

	for (i = 0; i < stack_wanted && i < FEW; i++) {
		void *object = stack_object();

		if (!object)
			break;
		hold(&held[i], object, i);
	}
	/* The compiler must keep the array, and nothing else may have what is in it. */
	barrier_data(held);
	complete(&slept);
	set_current_state(TASK_INTERRUPTIBLE);
	while (!kthread_should_stop()) {
		schedule();
		set_current_state(TASK_INTERRUPTIBLE);
	}
	__set_current_state(TASK_RUNNING);
	barrier_data(held);
	for (i = 0; i < stack_wanted && i < FEW; i++)
		release(&held[i], i);
	return 0;
}

static int held_stack_leak(unsigned int n)
{
	struct task_struct *task;

	if (sleeper)
		return 0;
	stack_wanted = n;
	reinit_completion(&slept);
	task = kthread_run(sleep_with_objects, NULL, "leakdrv-sleeper");
	if (IS_ERR(task))
		return PTR_ERR(task);
	sleeper = task;
	wait_for_completion(&slept);
	return 0;
}
static int held_stack_balanced(unsigned int n) { return -EOPNOTSUPP; }

/* A head with four parts, on a list that nobody has any more. */
struct whole {
	struct list_head parts;
	char data[660];
};

struct part {
	struct list_head list;
	char data[300];
};

static noinline struct part *lost_part(void)
{
	struct part *part = kzalloc(sizeof(*part), GFP_KERNEL);

	OPTIMIZER_HIDE_VAR(part);
	return part;
}

static noinline int lost_whole_leak(unsigned int n)
{
	for (; n; n--) {
		struct whole *whole = kzalloc(sizeof(*whole), GFP_KERNEL);
		unsigned int i;

		if (!whole)
			return -ENOMEM;
		INIT_LIST_HEAD(&whole->parts);
		for (i = 0; i < 4; i++) {
			struct part *part = lost_part();

			if (!part)
				return -ENOMEM;
			list_add_tail(&part->list, &whole->parts);
		}
	}
	return 0;
}
static int lost_whole_balanced(unsigned int n) { return -EOPNOTSUPP; }

/* Leaves in a tree whose root nobody has any more: what holds them are the kernel's nodes, which it could give back. */
#define LEAVES 8
struct tree {
	struct xarray leaves;
	char data[600];
};

struct leaf {
	char data[200];
};

static noinline struct leaf *lost_leaf(void)
{
	struct leaf *leaf = kzalloc(sizeof(*leaf), GFP_KERNEL);

	OPTIMIZER_HIDE_VAR(leaf);
	return leaf;
}

static noinline int lost_tree_leak(unsigned int n)
{
	for (; n; n--) {
		struct tree *tree = kzalloc(sizeof(*tree), GFP_KERNEL);
		unsigned long i;

		if (!tree)
			return -ENOMEM;
		xa_init(&tree->leaves);
		for (i = 0; i < LEAVES; i++) {
			struct leaf *leaf = lost_leaf();

			if (!leaf || xa_err(xa_store(&tree->leaves, i, leaf, GFP_KERNEL)))
				return -ENOMEM;
		}
	}
	return 0;
}
static int lost_tree_balanced(unsigned int n) { return -EOPNOTSUPP; }

/* What most drivers' objects look like: functions, a name, an empty list, and a buffer. */
struct lost_session;
struct lost_session_ops {
	int (*close)(struct lost_session *session);
};

struct lost_session {
	struct list_head waiting;
	const struct lost_session_ops *ops;
	char name[16];
	void *buffer;
	char data[1100];
};

static int close_lost_session(struct lost_session *session) { return session->ops ? 0 : -EINVAL; }
static const struct lost_session_ops lost_session_ops = { .close = close_lost_session };

static noinline int lost_session_leak(unsigned int n)
{
	for (; n; n--) {
		struct lost_session *session = kzalloc(sizeof(*session), GFP_KERNEL);

		if (!session)
			return -ENOMEM;
		INIT_LIST_HEAD(&session->waiting);
		session->ops = &lost_session_ops;
		strscpy(session->name, "leaked session", sizeof(session->name));
		session->buffer = kzalloc(90, GFP_KERNEL);
		OPTIMIZER_HIDE_VAR(session);
	}
	return 0;
}
static int lost_session_balanced(unsigned int n) { return -EOPNOTSUPP; }

/*
 * Lost, but per-CPU memory that is free again still has a pointer to each. What is kept between the freed pieces keeps
 * their pages from being given back.
 */
static void __percpu *kept[FEW];
static unsigned int kept_count;

static noinline int left_percpu_leak(unsigned int n)
{
	void **__percpu left[FEW];
	unsigned int i, cpu;
	int error = 0;

	if (n > FEW - kept_count)
		return -EINVAL;
	for (i = 0; i < n; i++) {
		struct lost_session *object = kzalloc(3000, GFP_KERNEL);

		kept[kept_count] = __alloc_percpu(512, 8);
		left[i] = __alloc_percpu(512, 8);
		if (!object || !kept[kept_count++] || !left[i]) {
			error = -ENOMEM;
			break;
		}
		object->ops = &lost_session_ops;
		for_each_possible_cpu(cpu)
			per_cpu_ptr(left[i], cpu)[8] = object;
		OPTIMIZER_HIDE_VAR(object);
	}
	while (i--)
		free_percpu(left[i]);
	return error;
}
static int left_percpu_balanced(unsigned int n) { return -EOPNOTSUPP; }

const struct leak_path holder_paths[] = {
	ENTRY(held_data), ENTRY(held_percpu), ENTRY(held_area), ENTRY(held_page), ENTRY(held_list), ENTRY(held_stack),
	ENTRY(lost_whole), ENTRY(lost_tree), ENTRY(lost_session),
	ENTRY(left_percpu), {}
};

int holder_init(void)
{
	init_completion(&slept);
	in_area = vzalloc(MOST * sizeof(void *));
	in_page = (void **)get_zeroed_page(GFP_KERNEL);
	in_list = kcalloc(FEW, sizeof(*in_list), GFP_KERNEL);
	if (in_area && in_page && in_list)
		return 0;
	holder_exit();
	return -ENOMEM;
}

void holder_exit(void)
{
	unsigned int i;

	if (sleeper)
		kthread_stop(sleeper);
	sleeper = NULL;
	for (i = 0; i < MOST; i++) {
		release(&in_data[i], i);
		if (in_area)
			release(&in_area[i], i);
		if (in_page)
			release(&in_page[i], i);
	}
	for (i = 0; i < FEW; i++)
		release(per_cpu_ptr(&in_percpu[i], 0), i);
	for (i = 0; in_list && i < list_count; i++)
		kfree(sg_virt(&in_list[i]));
	while (kept_count)
		free_percpu(kept[--kept_count]);
	kfree(in_list);
	free_page((unsigned long)in_page);
	vfree(in_area);
}
