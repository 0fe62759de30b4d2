#!/bin/bash
# What every worker of a TPU slice does when it starts, as root: `experiments/launch.py --on=tpu_vm`
# hands this to it as its startup script. A worker that was restarted goes on by itself.
#
# The bucket and the training are services of systemd: when the machine is taken away the training is
# stopped first, gets SIGTERM, and saves to the bucket.
set -euo pipefail

attribute() {
  curl --silent --fail --header "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

bucket=$(attribute dlm-bucket)
name=$(attribute dlm-name)
command=$(attribute dlm-command)
units=/etc/systemd/system

if ! command -v gcsfuse > /dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  packages=https://packages.cloud.google.com/apt
  curl --silent --fail --output "$key" "$packages/doc/apt-key.gpg"
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release --codename --short) main" \
    > /etc/apt/sources.list.d/gcsfuse.list
  apt-get update
  apt-get install --yes gcsfuse python3-pip
fi

mkdir -p /share /opt/dlm
cat > $units/share.service <<UNIT
[Unit]
After=network-online.target
[Service]
ExecStart=/usr/bin/gcsfuse --foreground --implicit-dirs $bucket /share
UNIT
systemctl daemon-reload
systemctl start share
until mountpoint --quiet /share; do sleep 1; done

tar --extract --file="/share/code/$name.tar.gz" --directory=/opt/dlm
cd /opt/dlm
pip3 install uv
[ -x .venv/bin/python ] || uv venv --python=3.12 .venv  # the image's own is 3.10: too old
uv pip install --python=.venv --constraint=constraints-py312.txt --editable='.[data,plot,tpu]'

# 0: done. 2: a mistake of the caller. All else is worth another try: 143, stopped and saved; 1,
# another worker is gone.
echo "exec .venv/bin/python $command --distributed" > start.sh
cat > $units/dlm.service <<UNIT
[Unit]
After=network-online.target share.service
StartLimitBurst=20
StartLimitIntervalSec=1week
[Service]
Environment=JAX_COMPILATION_CACHE_DIR=/share/cache/jax
WorkingDirectory=/opt/dlm
ExecStart=/bin/bash start.sh
TimeoutStopSec=120
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=2
UNIT
systemctl daemon-reload
systemctl start dlm
