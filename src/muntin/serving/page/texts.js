// SPDX-License-Identifier: Apache-2.0
/** Everything that the pages say, in each language; {name} is filled in. */

const ENGLISH = {
  skip: "Skip to the images",
  title: "muntin: predictions",
  model: "Model",
  api: "API",
  drop: "Drop, paste or choose images to see what the model finds.",
  drop_more: "Add images: drop, paste, or",
  choose: "Choose images",
  photograph: "Take a photo",
  images: "Images",
  remove: "Remove {name}",
  image_state: "{name}: {state}",
  queued: "waiting to be sent",
  sending: "the model works on it",
  sending_long: "sent {seconds} s ago: the server works on it, or on what came before",
  done: "ready",
  failed: "failed",
  waiting: "waits for the server",
  waiting_for: "The server has no time now ({reason}). Trying again in {seconds} s.",
  retry: "Try again",
  gone: "The server does not answer. It may have stopped, or the connection is down.",
  gone_banner: "The server does not answer. Asking again every few seconds.",
  cut: "The server closed the connection before it answered: the file has {size} MiB, and may be too large.",
  starting: "The server loads its models. This page goes on by itself.",
  draining: "The server is stopping: it finishes what it has, and accepts nothing new.",
  invisible: "This browser cannot show this format; results are drawn on an empty image of {width} x {height} pixels.",
  invisible_yet: "This browser cannot show this format.",
  turned: "This browser shows the image in another size ({seen}) than the model saw, so results are drawn on an empty image.",
  threshold: "Score threshold",
  threshold_from: "starts at {value}: {why}",
  threshold_zero: "starts at 0: everything is listed",
  keypoints: "Keypoint threshold",
  opacity: "Opacity of masks",
  opacity_map: "Opacity of the map",
  shown: "{shown} of {total}",
  objects: "Objects",
  classes: "Classes",
  instances: "Instances",
  regions: "Shares of the image",
  list_help: "Arrow keys choose, Enter enlarges.",
  summary_boxes: "{count} objects: {names}",
  summary_box: "1 object: {names}",
  summary_poses: "{count} instances",
  summary_pose: "1 instance",
  unseen: "Keypoints of {count} not drawn: all below {least}.",
  summary_semantic: "{count} classes; the largest: {names}",
  summary_region: "1 class: {names}",
  summary_classes: "Most likely {name}, score {score}",
  summary_none: "Nothing above the threshold.",
  summary_empty: "The model found nothing.",
  frame: "{name}: image with results. Plus and minus enlarge, 0 shows all, arrows move.",
  larger: "Enlarge",
  smaller: "Shrink",
  whole: "Show all",
  download: "Download",
  download_image: "Image",
  all: "{files} of all {count} images",
  no_coco: "COCO has no form for classes of whole images.",
  explain: "Explain",
  explain_help: "Opens a page in a new tab that shows what in the image led to this answer. It takes up to a few minutes.",
  explaining: "The explanation is being made, which takes up to a few minutes ...",
  explain_blocked: "The browser did not allow a new tab. Allow it for this page, and try again.",
  explain_failed: "There is no explanation: {reason}",
  token: "Token",
  token_help: "This server asks for a token. It is kept until this tab is closed.",
  token_wrong: "The server does not know this token.",
  token_send: "Continue",
  cancel: "Cancel",
  no_token: "The server asks for a token.",
  facts: "{task}, {model}, {classes} classes",
  fact: "{task}, {model}, 1 class",
  more: "Show all {count}",
  docs_title: "API of this server",
  docs_intro: "Every route of the server, with an example to copy.",
  docs_page: "Try it with images",
  docs_schema: "OpenAPI (JSON)",
  docs_parameters: "Parameters",
  docs_body: "Body",
  docs_answers: "Answers",
  docs_example: "Example",
  docs_copy: "Copy",
  docs_copied: "Copied",
  docs_required: "required",
  docs_where_path: "in the path",
  docs_where_query: "in the address",
  docs_where_header: "header",
  docs_token: "The server asks for a token: set TOKEN in your shell.",
  docs_failed: "The description cannot be read: {reason}",
  docs_routes: "Routes",
};

const CHINESE = {
  skip: "跳到图像",
  title: "muntin：预测",
  model: "模型",
  api: "API",
  drop: "拖放、粘贴或选择图像，查看模型的识别结果。",
  drop_more: "添加图像：拖放、粘贴，或",
  choose: "选择图像",
  photograph: "拍照",
  images: "图像",
  remove: "移除 {name}",
  image_state: "{name}：{state}",
  queued: "等待发送",
  sending: "模型正在处理",
  sending_long: "已发送 {seconds} 秒：服务器正在处理它，或它之前的请求",
  done: "完成",
  failed: "失败",
  waiting: "等待服务器",
  waiting_for: "服务器正忙（{reason}）。{seconds} 秒后重试。",
  retry: "重试",
  gone: "服务器没有响应。它可能已停止，或连接已断开。",
  gone_banner: "服务器没有响应。每隔几秒重新询问。",
  cut: "服务器在回答之前关闭了连接：文件大小为 {size} MiB，可能过大。",
  starting: "服务器正在加载模型，页面会自动继续。",
  draining: "服务器正在停止：已接收的请求会完成，不再接收新的请求。",
  invisible: "此浏览器无法显示这种格式；结果画在 {width} x {height} 像素的空白图像上。",
  invisible_yet: "此浏览器无法显示这种格式。",
  turned: "此浏览器显示的图像尺寸（{seen}）与模型所见不同，因此结果画在空白图像上。",
  threshold: "分数阈值",
  threshold_from: "初始值 {value}：{why}",
  threshold_zero: "从 0 开始：列出全部",
  keypoints: "关键点阈值",
  opacity: "掩膜不透明度",
  opacity_map: "分割图不透明度",
  shown: "{shown}/{total} ",
  objects: "目标",
  classes: "类别",
  instances: "实例",
  regions: "占图像的比例",
  list_help: "方向键选择，回车放大。",
  summary_boxes: "{count} 个目标：{names}",
  summary_box: "1 个目标：{names}",
  summary_poses: "{count} 个实例",
  summary_pose: "1 个实例",
  unseen: "{count} 个实例的关键点未绘制：全部低于 {least}。",
  summary_semantic: "{count} 个类别；最大的是：{names}",
  summary_region: "1 个类别：{names}",
  summary_classes: "最可能是 {name}，分数 {score}",
  summary_none: "没有高于阈值的结果。",
  summary_empty: "模型没有找到任何目标。",
  frame: "{name}：带结果的图像。加号和减号缩放，0 显示全图，方向键移动。",
  larger: "放大",
  smaller: "缩小",
  whole: "显示全图",
  download: "下载",
  download_image: "图像",
  all: "全部 {count} 张图像的 {files}",
  no_coco: "COCO 没有整幅图像类别的格式。",
  explain: "解释",
  explain_help: "在新标签页中显示图像的哪些部分得出了这个答案，可能需要几分钟。",
  explaining: "正在生成解释，可能需要几分钟……",
  explain_blocked: "浏览器不允许打开新标签页。请允许后重试。",
  explain_failed: "无法解释：{reason}",
  token: "令牌",
  token_help: "此服务器需要令牌。它会保留到关闭此标签页为止。",
  token_wrong: "服务器不认识这个令牌。",
  token_send: "继续",
  cancel: "取消",
  no_token: "服务器需要令牌。",
  facts: "{task}，{model}，{classes} 个类别",
  fact: "{task}，{model}，1 个类别",
  more: "显示全部 {count} 项",
  docs_title: "此服务器的 API",
  docs_intro: "服务器的所有路由，附有可复制的示例。",
  docs_page: "用图像试一试",
  docs_schema: "OpenAPI（JSON）",
  docs_parameters: "参数",
  docs_body: "请求体",
  docs_answers: "响应",
  docs_example: "示例",
  docs_copy: "复制",
  docs_copied: "已复制",
  docs_required: "必需",
  docs_where_path: "路径中",
  docs_where_query: "地址中",
  docs_where_header: "请求头",
  docs_token: "服务器需要令牌：请在终端中设置 TOKEN。",
  docs_failed: "无法读取描述：{reason}",
  docs_routes: "路由",
};

export const TEXTS = { en: ENGLISH, zh: CHINESE };

/** "en" or "zh": what the address asks for (`?lang=zh`), else what the browser prefers. */
export const language = choose();

function choose() {
  const asked = new URLSearchParams(location.search).get("lang");
  for (const wanted of [asked, ...(navigator.languages ?? [navigator.language])]) {
    const known = Object.keys(TEXTS).find((name) => (wanted ?? "").toLowerCase().startsWith(name));
    if (known) return known;
  }
  return "en";
}

/** A text in the language of the page. */
export function say(name, values = {}) {
  const text = TEXTS[language][name];
  if (text === undefined) throw new Error(`there is no text ${name}`);
  return text.replace(/\{(\w+)\}/g, (_, key) => String(values[key]));
}

/** Fill in the texts that a page names by `data-text` and `data-label`, and its language. */
export function fillTexts() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = say(element.dataset.text);
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
    element.title = say(element.dataset.label);
  }
  const other = language === "en" ? "zh" : "en";
  const link = document.querySelector("#language");
  link.href = `?lang=${other}`;
  link.lang = other;
  link.textContent = { en: "English", zh: "中文" }[other];
}
