// SPDX-License-Identifier: GPL-2.0
/*
 * leakdrv: the leaking driver of leaktrace's tests. `echo "kmalloc leak 1000" >
 * /sys/kernel/debug/leakdrv/run` leaks 1000 objects of the path kmalloc; `balanced` frees them.
 */
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "leakdrv.h"

static unsigned int leak_at_init;
module_param(leak_at_init, uint, 0444);
MODULE_PARM_DESC(leak_at_init, "objects to leak while the module is initialised");

static struct dentry *directory;

/* Whether anything has been leaked so far. */
static bool leaked;

static const struct leak_path *const families[] = { slab_paths, page_paths, context_paths, pattern_paths, holder_paths };

static const struct leak_path *find(const char *name)
{
	const struct leak_path *path;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(families); i++)
		for (path = families[i]; path->name; path++)
			if (!strcmp(path->name, name))
				return path;
	return NULL;
}

static ssize_t run_write(struct file *file, const char __user *data, size_t size, loff_t *at)
{
	char text[64], name[32], mode[16];
	const struct leak_path *path;
	unsigned int n;
	int error;

	if (size >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, data, size))
		return -EFAULT;
	text[size] = 0;
	if (sscanf(text, "%31s %15s %u", name, mode, &n) != 3)
		return -EINVAL;
	path = find(name);
	if (!path)
		return -ENOENT;
	if (!strcmp(mode, "leak")) {
		leaked = true;
		error = path->leak ? path->leak(n) : -EOPNOTSUPP;
	} else if (!strcmp(mode, "balanced")) {
		error = path->balanced ? path->balanced(n) : -EOPNOTSUPP;
	} else {
		error = -EINVAL;
	}
	return error ? error : size;
}

static const struct file_operations run_fops = {
	.owner = THIS_MODULE,
	.write = run_write,
};

/* Not __init: the text of that is gone when the report is made. */
static noinline void leak_in_init(void)
{
	unsigned int i;

	for (i = 0; i < leak_at_init; i++) {
		void *object = kmalloc(120, GFP_KERNEL);

		OPTIMIZER_HIDE_VAR(object);
	}
}

static int __init leakdrv_init(void)
{
	int error;

	leak_in_init();
	error = slab_init();
	if (error)
		return error;
	error = page_init();
	if (error)
		goto no_pages;
	error = context_init();
	if (error)
		goto no_contexts;
	error = holder_init();
	if (error)
		goto no_holders;
	directory = debugfs_create_dir("leakdrv", NULL);
	debugfs_create_file("run", 0200, directory, NULL, &run_fops);
	handles_init(directory);
	return 0;

no_holders:
	context_exit();
no_contexts:
	page_exit();
no_pages:
	slab_exit(false);
	return error;
}

static void __exit leakdrv_exit(void)
{
	debugfs_remove_recursive(directory);
	context_exit();
	holder_exit();
	pattern_exit();
	/* What was handed to kfree_rcu and call_rcu goes back before its caches. */
	rcu_barrier();
	page_exit();
	slab_exit(leaked);
}

module_init(leakdrv_init);
module_exit(leakdrv_exit);
MODULE_DESCRIPTION("A driver that leaks on demand, for leaktrace's tests");
MODULE_LICENSE("GPL");
