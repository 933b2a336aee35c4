# Where Python packages come from on this machine, and which of the two lock files to use.
# shellcheck shell=bash
#
# The variables are set in the environment or in .env, which controller/system/dotenv.py reads. It makes paths absolute.
#
# GLOVEBOX_HOME=DIR           state of the research
# GLOVEBOX_CORPUS, GLOVEBOX_SCALE   the data: stdlib, climbmix, a folder or a file; cpu, small, medium or gpu
# GLOVEBOX_SEPARATOR                separator between the documents of a txt in the corpus
# GLOVEBOX_BASE_IMAGE=NAME    base of the images, see base.sh
# GLOVEBOX_VARIANT=cpu|cuda   the lock file to use, instead of the choice below
# GLOVEBOX_LOCK=FILE          your own lock file instead, with hashes
# GLOVEBOX_TORCH_INDEX=URL    an index with torch for another CUDA; installed from there without hashes
# GLOVEBOX_WHEELS=DIR         a folder of wheels; default: pip's find-links setting
# GLOVEBOX_CA_BUNDLE=FILE     certificate authorities to trust; default: PIP_CERT, SSL_CERT_FILE or the system's

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly PROJECT VARIABLES="GLOVEBOX_HOME GLOVEBOX_CORPUS GLOVEBOX_SEPARATOR GLOVEBOX_SCALE GLOVEBOX_VARIANT GLOVEBOX_LOCK
    GLOVEBOX_TORCH_INDEX GLOVEBOX_WHEELS GLOVEBOX_CA_BUNDLE GLOVEBOX_BASE_IMAGE"

# from_settings NAME...: a shell assignment for each variable set in the environment or in .env.
from_settings() { (cd "$PROJECT" && python3 -B -X utf8 -m controller.system.dotenv "$@"); }

load_variables() {
    local told
    need python3 python3
    # shellcheck disable=SC2086 # one word for each variable
    told=$(from_settings $VARIABLES) || exit
    eval "$told"
    # shellcheck disable=SC2086
    export $VARIABLES
}

load_variables

# The folder of GLOVEBOX_WHEELS, else the first folder among pip's find-links, else nothing.
wheels_folder() {
    local candidate
    if [ -n "${GLOVEBOX_WHEELS:-}" ]; then
        [ ! -d "$GLOVEBOX_WHEELS" ] || realpath "$GLOVEBOX_WHEELS"
        return
    fi
    for candidate in ${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2>/dev/null)}; do
        if [ -d "$candidate" ]; then
            realpath "$candidate"
            return
        fi
    done
}

ca_bundle() {
    local candidate
    for candidate in "${GLOVEBOX_CA_BUNDLE:-}" "${PIP_CERT:-}" "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt; do
        if [ -s "$candidate" ]; then
            realpath "$candidate"
            return
        fi
    done
}

pip_config() {
    local candidate
    for candidate in "${PIP_CONFIG_FILE:-}" ~/.config/pip/pip.conf ~/.pip/pip.conf /etc/pip.conf; do
        if [ -f "$candidate" ]; then
            realpath "$candidate"
            return
        fi
    done
}

# The host Python's tag in wheel names, e.g. cp311.
python_tag() { python3 -c 'import sys; print("cp%d%d" % sys.version_info[:2])'; }

# A test engine may register plain runc as "nvidia"; that is not a GPU.
has_gpu() {
    { have nvidia-smi && nvidia-smi -L >/dev/null 2>&1; } ||
        { have docker && docker info --format '{{json .Runtimes}}' 2>/dev/null | grep -q nvidia-container-runtime; }
}

# variant PYTHON_TAG (e.g. cp311): "cuda" with a GPU or an index for torch; else "cpu" if torch's CPU wheel for that Python
# is available; else "cuda", which is larger but runs without a GPU and needs no extra index.
variant() {
    if [ -n "${GLOVEBOX_VARIANT:-}" ]; then
        echo "$GLOVEBOX_VARIANT"
    elif has_gpu || [ -n "${GLOVEBOX_TORCH_INDEX:-}" ]; then
        echo cuda
    elif compgen -G "$(wheels_folder)/torch-*+cpu-$1-*_$(uname -m).whl" >/dev/null; then
        echo cpu
    elif [[ "${PIP_INDEX_URL:-} ${PIP_EXTRA_INDEX_URL:-}" == */whl/cpu* ]]; then
        echo cpu
    else
        echo cuda
    fi
}

# The lock file for a variant.
lock_file() {
    if [ -z "${GLOVEBOX_LOCK:-}" ]; then
        echo "requirements-$1.lock"
    elif [ -s "$GLOVEBOX_LOCK" ]; then
        realpath "$GLOVEBOX_LOCK"
    else
        stop "there is no lock file $GLOVEBOX_LOCK, which GLOVEBOX_LOCK names."
    fi
}

# sandbox_lock FILE: the part of a lock file that the image installs. With an index for torch: all but torch and its CUDA
# packages, which come from that index. The comment makes the builder notice a changed index; the URL itself may contain
# a password.
sandbox_lock() {
    if [ -z "${GLOVEBOX_TORCH_INDEX:-}" ]; then
        cat "$1"
        return
    fi
    echo "# without torch, which comes from the index with the hash $(sha256sum <<<"$GLOVEBOX_TORCH_INDEX" | cut -c1-16)"
    awk '/^[^ #]/ {skip = /^(torch|triton|pytorch-triton|nvidia-|cuda-)/} !skip' "$1"
}

# torch_requirement FILE: the version of torch in a lock file, without its CUDA suffix.
torch_requirement() { sed -n 's/^\(torch==[^ +]*\).*/\1/p' "$1" | head -n 1; }

# The corpus: GLOVEBOX_CORPUS, else what suits the machine.
corpus() {
    if [ -n "${GLOVEBOX_CORPUS:-}" ]; then
        echo "$GLOVEBOX_CORPUS"
    elif has_gpu; then
        echo climbmix
    else
        echo stdlib
    fi
}
