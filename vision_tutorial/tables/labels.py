"""The words of tables of runs, in English and Korean."""

LANGUAGES = ("en", "ko")

WORDS = {
    "run": ("run", "실험"),
    "status": ("status", "상태"),
    "best": ("best {metric}", "최고 {metric}"),
    "last": ("last {metric}", "마지막 {metric}"),
    "metric": ("metric", "지표"),
    "chosen_on": ("best chosen on", "최고 에폭을 고른 데이터"),
    "expected": ("expected {metric}", "목표 {metric}"),
    "seconds": ("time", "걸린 시간"),
    "expected_seconds": ("expected time", "예상 시간"),
    "changed": ("what changed", "바꾼 것"),
    "over": ("over", "비교 대상"),
    "delta": ("Δ", "Δ"),
    "noise": ("noise", "오차 판정"),
    "within": ("within noise", "오차 범위 내"),
    "beyond": ("beyond noise", "오차 범위 밖"),
    "unknown": ("unknown", "미측정"),
    "date": ("Date", "날짜"),
    "run_name": ("Run Name", "실험 이름"),
    "model_name": ("Model Name", "모델 이름"),
    "arguments": ("Arguments", "설정값"),
    "link": ("WandB link", "WandB 링크"),
    "notes": ("notes", "메모"),
    "analyze": ("Analyze", "분석"),
    "heads": ("loss: decoder ‖ auxiliary", "손실: 디코더 ‖ 보조"),
    "offline": ("offline", "오프라인"),
    "batch_size": ("batch size", "배치 크기"),
    "optimizer": ("optimizer", "옵티마이저"),
    "schedule": ("schedule", "스케줄"),
    "epochs": ("epochs", "에폭"),
    "momentum": ("momentum", "모멘텀"),
    "weight_decay": ("weight decay", "가중치 감쇠"),
    "lr": ("lr", "학습률"),
    "warmup_pair": ("warmup lr / epochs", "웜업 학습률 / 에폭"),
    "min_lr": ("min lr", "최소 학습률"),
    "hflip": ("hflip", "좌우 반전"),
    "color_jitter": ("colour jitter", "색상 변형"),
    "auto_augment": ("AutoAugment", "AutoAugment"),
    "cutmix": ("CutMix", "CutMix"),
    "mixup": ("Mixup", "Mixup"),
    "best_of": ("best {metric} ({data})", "최고 {metric} ({data})"),
    "rule": (
        "Noise: |Δ| ≤ t·√(s₁²/n₁ + s₂²/n₂) at 95 % (Welch), of the best over seeds.",
        "오차 판정: 시드별 최고값으로 |Δ| ≤ t·√(s₁²/n₁ + s₂²/n₂)이면 오차 범위 내 (Welch, 95 %).",
    ),
    "borrowed": (
        "A single run is given the spread of the other seeds here, s = {spread}.",
        "한 번만 돌린 실험에는 이 표의 다른 시드들에서 구한 표준편차 s = {spread}를 씁니다.",
    ),
    "assumed": (
        "A single run is given an assumed spread between seeds, s = {spread}.",
        "한 번만 돌린 실험에는 가정한 시드 간 표준편차 s = {spread}를 씁니다.",
    ),
    "no_seeds": (
        "Unknown: too few runs differ in their seed alone to tell a difference from noise.",
        "미측정: 시드만 다른 실험이 부족하여 차이와 오차를 구별할 수 없습니다.",
    ),
    "mean": ("±: sample standard deviation over n seeds.", "±: 시드 n개에 대한 표본 표준편차."),
    "repeats": (
        "Of runs with one recipe and one seed the newest counts; left out: {ids}.",
        "레시피와 시드가 같은 실험은 가장 새것만 셉니다. 제외: {ids}.",
    ),
}

STATES = {
    "running": ("running", "실행 중"),
    "done": ("done", "완료"),
    "paused": ("paused", "일시 중지"),
    "preempted": ("preempted", "선점으로 중단"),
    "failed": ("failed", "실패"),
    "killed": ("killed", "강제 종료"),
    "not started": ("not started", "시작 전"),
}

# Every key of a recipe, and what stands within one. English is the key itself.
KEYS = {
    "name": "이름",
    "expects": "목표값",
    "imports": "불러오는 파일",
    "task": "과제",
    "dataset": "데이터셋",
    "holdout": "검증용 비율",
    "subset": "학습 이미지 수",
    "augment": "데이터 증강",
    "eval_augment": "평가 전처리",
    "normalize": "정규화",
    "mix": "이미지 섞기",
    "data": "데이터 경로",
    "workers": "로더 프로세스",
    "model": "모델",
    "loss": "손실 함수",
    "aux_loss": "보조 손실",
    "aux_weight": "보조 손실 가중치",
    "balance": "손실 균형",
    "epochs": "에폭",
    "batch_size": "배치 크기",
    "micro_batch": "마이크로 배치",
    "optimizer": "옵티마이저",
    "parameter_groups": "파라미터 그룹",
    "schedule": "스케줄",
    "schedule_unit": "스케줄 단위",
    "warmup": "웜업",
    "cooldown": "쿨다운",
    "clip": "그래디언트 클리핑",
    "ema": "가중치 이동 평균",
    "seed": "시드",
    "precision": "연산 정밀도",
    "channels_last": "channels_last",
    "compile": "컴파일",
    "deterministic": "결정적 연산",
    "sync_bn": "동기화 BN",
    "shards": "샤드",
    "threads": "스레드",
    "eval_every": "평가 간격(에폭)",
    "eval_batch_size": "평가 배치 크기",
    "refine": "후처리",
    "early_stopping": "조기 종료",
    "checkpoint": "체크포인트",
    "wandb": "wandb",
}
PARTS = {
    "epochs": "에폭",
    "lr": "학습률",
    "mode": "방식",
    "no_decay_1d": "1차원 감쇠 제외",
    "layer_decay": "층별 학습률 감쇠",
    "norm": "노름",
    "value": "값",
    "agc": "AGC",
    "decay": "감쇠율",
    "warmup": "웜업",
    "mean": "평균",
    "std": "표준편차",
    "path": "방식",
    "memory": "메모리",
    "patience": "patience",
    "metric": "지표",
    "min_delta": "최소 개선폭",
    "calibrate": "보정 스텝",
    "ema": "이동 평균",
    "every_minutes": "간격(분)",
    "every_steps": "간격(스텝)",
    "keep": "보관 수",
    "project": "프로젝트",
    "group": "그룹",
    "tags": "태그",
    "notes": "메모",
}


def word(key: str, language: str, **values: str) -> str:
    """One of WORDS, with its {values} filled in."""
    return WORDS[key][LANGUAGES.index(language)].format(**values).strip()


def state_word(status: str, language: str) -> str:
    """How a run stands; a status that is none of STATES stays as it is."""
    return STATES.get(status, (status, status))[LANGUAGES.index(language)]


def key_words(key: str, language: str) -> str:
    """A recipe's key, such as `warmup.lr`, as the head of a column."""
    if language == "en":
        return key
    first, _, part = key.partition(".")
    return f"{KEYS.get(first, first)} {PARTS.get(part, part)}".strip()
