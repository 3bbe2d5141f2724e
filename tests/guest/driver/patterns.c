// SPDX-License-Identifier: GPL-2.0
/* Behaviour over time: what hides a leak, and what looks like one. */
#include <linux/completion.h>
#include <linux/hrtimer.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/maple_tree.h>
#include <linux/rhashtable.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/timer.h>
#include <linux/version.h>
#include <linux/xarray.h>

#include "leakdrv.h"

/* One object in a thousand is forgotten; `n` are in the end. */
static noinline int hidden_leak(unsigned int n)
{
	unsigned int i;

	for (i = 0; i < n * 1000; i++) {
		void *object = kmalloc(440, GFP_KERNEL);

		if (!object)
			return -ENOMEM;
		OPTIMIZER_HIDE_VAR(object);
		if (i % 1000 != 999)
			kfree(object);
	}
	return 0;
}

/* A list that only grows: reachable, and a leak all the same. */
struct session {
	struct list_head list;
	char data[600];
};

static LIST_HEAD(sessions);

static noinline int unbounded_list_leak(unsigned int n)
{
	while (n--) {
		struct session *session = kzalloc(sizeof(*session), GFP_KERNEL);

		if (!session)
			return -ENOMEM;
		list_add(&session->list, &sessions);
	}
	return 0;
}

/* Objects that live for 30 s: `n` a second while it runs, and none lost. */
struct slow {
	struct list_head list;
	unsigned long until;
	char data[700];
};

static LIST_HEAD(slow_objects);
static unsigned int slow_rate;
static struct timer_list slow_timer;

static void slow_tick(struct timer_list *timer)
{
	struct slow *slow, *next;
	unsigned int i;

	list_for_each_entry_safe(slow, next, &slow_objects, list) {
		if (time_before(jiffies, slow->until))
			break;
		list_del(&slow->list);
		kfree(slow);
	}
	for (i = 0; i < slow_rate / 10; i++) {
		slow = kmalloc(sizeof(*slow), GFP_ATOMIC);
		if (!slow)
			break;
		slow->until = jiffies + 30 * HZ;
		list_add_tail(&slow->list, &slow_objects);
	}
	mod_timer(&slow_timer, jiffies + HZ / 10);
}

static int slow_balanced(unsigned int n)
{
	if (!slow_rate)
		timer_setup(&slow_timer, slow_tick, 0);
	slow_rate = n;
	mod_timer(&slow_timer, jiffies + 1);
	return 0;
}

/* A pool that grows to what is needed, and stays. */
#define POOL 4096

static void *pool[POOL];
static unsigned int pooled;

static noinline int pool_balanced(unsigned int n)
{
	for (; pooled < n && pooled < POOL; pooled++) {
		pool[pooled] = kzalloc(820, GFP_KERNEL);
		if (!pool[pooled])
			return -ENOMEM;
	}
	return 0;
}

/* A table that grows and shrinks with what is in it. */
struct entry {
	u32 key;
	struct rhash_head node;
};

static const struct rhashtable_params params = {
	.key_len = sizeof(u32),
	.key_offset = offsetof(struct entry, key),
	.head_offset = offsetof(struct entry, node),
	.automatic_shrinking = true,
};

static noinline int rhashtable_balanced(unsigned int n)
{
	struct entry *entries;
	struct rhashtable table;
	unsigned int i;
	int error;

	entries = kvcalloc(n, sizeof(*entries), GFP_KERNEL);
	if (!entries)
		return -ENOMEM;
	error = rhashtable_init(&table, &params);
	if (error)
		goto out;
	for (i = 0; i < n && !error; i++) {
		entries[i].key = i;
		error = rhashtable_insert_fast(&table, &entries[i].node, params);
	}
	while (i--)
		rhashtable_remove_fast(&table, &entries[i].node, params);
	rhashtable_destroy(&table);
out:
	kvfree(entries);
	return error;
}

/*
 * A maple tree of its own: its nodes come from per-CPU sheaves where there are (6.18 and later), and
 * go by RCU and in bulk.
 */
static int in_tree(unsigned int n, bool free)
{
	struct maple_tree *tree = kmalloc(sizeof(*tree), GFP_KERNEL);
	unsigned int i;
	int error = 0;

	if (!tree)
		return -ENOMEM;
	mt_init_flags(tree, MT_FLAGS_ALLOC_RANGE | MT_FLAGS_USE_RCU);
	for (i = 0; i < n && !error; i++)
		error = mtree_insert(tree, 2 * i + 1, xa_mk_value(i), GFP_KERNEL);
	if (free) {
		mtree_destroy(tree);
		kfree(tree);
	}
	return error;
}

static noinline int maple_leak(unsigned int n)
{
	int error = in_tree(n, false);

	barrier();
	return error;
}

static noinline int maple_balanced(unsigned int n)
{
	int error = in_tree(n, true);

	barrier();
	return error;
}

/* Interrupts that allocate and free in the middle of whatever does the same: `n` of them. */
static struct hrtimer storm_timer;
static unsigned int storm_left;
static DECLARE_COMPLETION(storm_over);

static noinline void storm_in_interrupt(void)
{
	void *object = kmalloc(1300, GFP_ATOMIC);

	OPTIMIZER_HIDE_VAR(object);
	kfree(object);
}

static enum hrtimer_restart storm_tick(struct hrtimer *timer)
{
	storm_in_interrupt();
	if (!--storm_left) {
		complete(&storm_over);
		return HRTIMER_NORESTART;
	}
	hrtimer_forward_now(timer, ns_to_ktime(100 * NSEC_PER_USEC));
	return HRTIMER_RESTART;
}

static noinline int storm_balanced(unsigned int n)
{
	reinit_completion(&storm_over);
	storm_left = n;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(&storm_timer, storm_tick, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
#else
	hrtimer_init(&storm_timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	storm_timer.function = storm_tick;
#endif
	hrtimer_start(&storm_timer, ns_to_ktime(100 * NSEC_PER_USEC), HRTIMER_MODE_REL_PINNED_HARD);
	while (!try_wait_for_completion(&storm_over)) {
		void *object = kmalloc(1300, GFP_KERNEL);

		if (!object)
			return -ENOMEM;
		OPTIMIZER_HIDE_VAR(object);
		kfree(object);
		cond_resched();
	}
	return 0;
}

const struct leak_path pattern_paths[] = {
	{ "hidden", hidden_leak, NULL },
	{ "unbounded_list", unbounded_list_leak, NULL },
	{ "slow", NULL, slow_balanced },
	{ "pool", NULL, pool_balanced },
	{ "rhashtable", NULL, rhashtable_balanced },
	{ "storm", NULL, storm_balanced },
	ENTRY(maple),
	{}
};

/* Everything that is held on purpose goes; the list was a leak, and stays one. */
void pattern_exit(void)
{
	struct slow *slow, *next;

	if (slow_rate) {
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
		timer_delete_sync(&slow_timer);
#else
		del_timer_sync(&slow_timer);
#endif
	}
	list_for_each_entry_safe(slow, next, &slow_objects, list)
		kfree(slow);
	while (pooled)
		kfree(pool[--pooled]);
}
