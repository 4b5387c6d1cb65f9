# The first process of the namespaces of namespaces.py, until it is systemd: namespaces_init.sh SCRATCH HIERARCHY,...
set -e
scratch=$1 hierarchies=$(echo "$2" | tr , ' ')
mount --make-rprivate /
mount -t proc proc /proc
umount -l -R /sys/fs/cgroup; mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
for name in $hierarchies; do
    options=$name; [ "$name" = systemd ] && options=none,name=systemd,xattr
    mkdir "/sys/fs/cgroup/$name"; mount -t cgroup -o "$options" cgroup "/sys/fs/cgroup/$name"
done
mkdir "$scratch/new"; mount -t tmpfs -o mode=755 tmpfs "$scratch/new"; cd "$scratch/new"
mkdir etc work dev
mount -t overlay -o "lowerdir=/etc,upperdir=etc,workdir=work" overlay /etc
echo 11111111111111111111111111111111 >/etc/machine-id
mount -t tmpfs -o mode=755 tmpfs dev                # the machine's own must not change its modes
for node in null:3 zero:5 full:7 random:8 urandom:9 kmsg:11; do mknod -m 666 "dev/${node%:*}" c 1 "${node#*:}"; done
mknod -m 666 dev/tty c 5 0; mknod -m 666 dev/fuse c 10 229
mkdir dev/pts dev/shm dev/mqueue; ln -s pts/ptmx dev/ptmx
for link in fd fd/0:stdin fd/1:stdout fd/2:stderr; do ln -s "/proc/self/${link%:*}" "dev/${link#*:}"; done
mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm; mount -t mqueue mqueue dev/mqueue
mount --rbind dev /dev
mkdir -p /var/lib/kubelet /var/lib/systemd
for directory in /run /var/log /var/lib/kubelet /var/lib/systemd; do mount -t tmpfs -o mode=755 tmpfs $directory; done
mkdir -p /run/systemd/system /run/lock
ip link set lo up; hostname crinoid-here; cd /
mount --make-rshared /
# In a container systemd takes its own arguments for the kernel's. It keeps what was set of units at run time in two places.
units=/run/systemd/system.control:/run/systemd/transient:/run/systemd/system:$scratch/units
exec env -i container=here SYSTEMD_UNIT_PATH="$units" SYSTEMD_LOG_TARGET=journal \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=vm.service \
    systemd.legacy_systemd_cgroup_controller=yes
